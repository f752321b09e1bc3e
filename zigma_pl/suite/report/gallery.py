"""Samples on the page: the first row of each grid with captions, whole grids, videos and previews."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from zigma_pl.suite.report.assets import RunAssets, Size
from zigma_pl.suite.report.results import RecordFile

NUM_PREVIEWS = 4
_VIDEO_TYPES = {".mp4": "video/mp4", ".webm": "video/webm"}
_PADDING_PX = 2  # of core.grid.tile
_MOST_COLUMNS = 16  # of a grid whose first row is shown sample by sample
_LARGEST_FACTOR = 64  # by which grids enlarge samples

Copy = Callable[[Path, str], tuple[str, Size] | None]
Box = tuple[int, int, int]  # left, top and side in pixels


@dataclass(frozen=True)
class Picture:
    """An image or a video of the page, or the reason why it is missing.

    text: description, or the reason why it is missing.
    address: URL of the file; None if it is missing.
    size: width and height of an image in pixels.
    video_type: MIME type, such as "video/mp4"; None for an image.
    gif: URL of the video as a GIF.
    """

    text: str
    address: str | None = None
    size: Size = (0, 0)
    video_type: str | None = None
    gif: str | None = None


@dataclass(frozen=True)
class Samples:
    """The samples of one record.

    label: name of the experiment.
    index: index of the experiment in its table, which determines the colour; None for none.
    protocol: how they were sampled, such as "seed 0, 25 network calls".
    pictures: the grid, or the videos.
    captions: captions or class names of the first row of the grid; empty if unknown or unconditional.
    first_row: the samples of the first row of the grid; empty for videos and unknown layouts.
    """

    label: str
    index: int | None
    protocol: str
    pictures: tuple[Picture, ...]
    captions: tuple[str, ...]
    first_row: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Captioned:
    """An image with its caption."""

    caption: str
    picture: Picture


def samples_of(result: RecordFile, label: str, index: int | None, run: RunAssets) -> Samples:
    """Return the samples of a record, and copy the files to its assets."""
    paths = result.record.pictures
    grid, clips = paths.get("grid"), paths.get("clips") or []
    names = clips or ([] if grid is None else [grid])
    pictures = tuple(_picture(result, path, f"samples_{number}", label, run) for number, path in enumerate(names))
    captions = tuple(paths.get("captions") or ())
    boxes: Sequence[Box] = ()
    if pictures and not clips:
        boxes = first_row(pictures[0].size, len(captions), result.record.protocol.get("image_size_px"))
    return Samples(label, index, _protocol(result), pictures, captions, tuple(boxes))


def first_row(size: Size, num_captions: int, image_size_px: int | None) -> list[Box]:
    """Return the boxes of the samples in the first row of a grid of `core.grid.tile`.

    Args:
        size: width and height of the grid.
        num_captions: number of samples in a row; if 0, it is found from the size of a sample in grids without labels.
        image_size_px: side of a sample before it was enlarged.

    Returns: no boxes if the layout is unknown.
    """
    width, height = size
    num_columns = num_captions or _columns_without_labels(size, image_size_px or 0)
    if not 0 < num_columns <= _MOST_COLUMNS or (width - _PADDING_PX) % num_columns:
        return []
    pitch = (width - _PADDING_PX) // num_columns
    if not _PADDING_PX < pitch <= height - _PADDING_PX:
        return []
    return [(_PADDING_PX + column * pitch, _PADDING_PX, pitch - _PADDING_PX) for column in range(num_columns)]


def _columns_without_labels(size: Size, image_size_px: int) -> int:
    for factor in range(1, _LARGEST_FACTOR + 1):
        pitch = image_size_px * factor + _PADDING_PX
        if image_size_px and all((side - _PADDING_PX) % pitch == 0 for side in size):
            return (size[0] - _PADDING_PX) // pitch
    return 0


def preview_files(log_folder: Path) -> list[Path]:
    """Return the grids that a run sampled during training, by step; empty if the log folder is missing."""
    return sorted((log_folder / "previews").glob("step_*.png"))


def previews(
    files: Sequence[Path], label: str, copy: Callable[[Path, str], tuple[str, Size] | None]
) -> list[Captioned]:
    """Return some of the grids that were sampled during training, the first and the last among them.

    Args:
        files: the grids step_<step>.* by step.
        label: name of the experiment.
        copy: copies an image to a name without suffix; returns URL and size, or None if it is no image.
    """
    files = [file for file in files if re.fullmatch(r"step_[0-9]{1,18}", file.stem) and file.is_file()]
    last, num = len(files) - 1, min(NUM_PREVIEWS, len(files))
    shown = []
    for file in [files[last - round(index * last / max(1, num - 1))] for index in reversed(range(num))]:
        step, copied = int(file.stem.removeprefix("step_")), copy(file, file.stem)
        text = f"Samples of {label} at step {step}"
        picture = Picture(f"{file} is no image") if copied is None else Picture(text, *copied)
        shown.append(Captioned(f"step {step:,}", picture))
    return shown


def _protocol(result: RecordFile) -> str:
    seed = f"seed {result.seed}" if result.seed is not None else "seed not stated"
    calls = result.record.protocol.get("num_network_calls")
    return seed + (f", {calls:g} network calls" if calls else "")


def _picture(result: RecordFile, path: str, stem: str, label: str, run: RunAssets) -> Picture:
    file, text = result.picture(path), f"Samples of {label}"
    suffix = Path(path).suffix
    if suffix not in _VIDEO_TYPES:
        copied = run.image(file, stem)
        if copied is None:
            return Picture(f"{path} is missing" if file is None else f"{file} is no image")
        return Picture(text, *copied)
    address = run.file(file, stem)
    if address is None:
        return Picture(f"{path} is missing")
    gif = None if file is None else file.with_suffix(".gif")
    as_gif = run.file(gif if gif is not None and gif.is_file() else None, f"{stem}_animated")
    return Picture(text, address, video_type=_VIDEO_TYPES[suffix], gif=as_gif)
