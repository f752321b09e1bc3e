"""Samples on the page: grids with the same seeds for every experiment, videos and previews."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zigma_pl.suite.report.assets import Assets
from zigma_pl.suite.report.results import RecordFile
from zigma_pl.suite.report.tables import View

NUM_PREVIEWS = 4
_VIDEO_TYPES = {".mp4": "video/mp4", ".webm": "video/webm"}


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
    size: tuple[int, int] = (0, 0)
    video_type: str | None = None
    gif: str | None = None


@dataclass(frozen=True)
class Captioned:
    """An image with its caption, and the index of its experiment in the table, which determines the colour."""

    caption: str
    picture: Picture | None
    index: int | None = None


def samples(view: View, assets: Assets) -> Iterator[Captioned]:
    """Yield the sample grid or the videos of the first seed of each experiment that was run."""
    for index, line in enumerate(view.lines):
        for result in line.results[:1]:
            caption = f"{line.experiment.label}, {_how(result)}"
            for picture in _pictures(result, line.experiment.label, assets) or [None]:
                yield Captioned(caption, picture, index)


def previews(result: RecordFile, label: str, assets: Assets) -> Iterator[Captioned]:
    """Yield some of the grids that were sampled during training, if the log folder exists."""
    folder = result.record.training.get("log_folder")
    found = sorted((result.locate(folder) / "previews").glob("step_*.png")) if folder else []
    files = [file for file in found if re.fullmatch(r"step_[0-9]{1,18}", file.stem) and file.is_file()]
    shown = range(min(NUM_PREVIEWS, len(files)))
    for file in [files[round(index * (len(files) - 1) / max(1, len(shown) - 1))] for index in shown]:
        step = int(file.stem.removeprefix("step_"))
        stem = f"previews/{result.record.scale}/{result.file.stem}_{step}"
        yield Captioned(f"step {step:,}", _still(file, stem, f"Samples of {label} at step {step}", assets))


def _pictures(result: RecordFile, label: str, assets: Assets) -> list[Picture | None]:
    """Return the videos of a record, or its image grid."""
    pictures = result.record.pictures
    grid = pictures.get("grid")
    paths = pictures.get("clips") or ([] if grid is None else [grid])
    stem = f"pictures/{result.record.scale}/{result.file.stem}"
    return [_shown(result, path, f"{stem}_{index}", label, assets) for index, path in enumerate(paths)]


def _how(result: RecordFile) -> str:
    seed = f"seed {result.seed}" if result.seed is not None else "seed not stated"
    calls = result.record.protocol.get("num_network_calls")
    return seed + (f", {calls} network calls" if calls else "")


def _shown(result: RecordFile, path: str, stem: str, label: str, assets: Assets) -> Picture:
    file, text = result.picture(path), f"Samples of {label}"
    if file is None:
        return Picture(f"{path} is missing")
    if file.suffix not in _VIDEO_TYPES:
        return _still(file, stem, text, assets)
    gif = file.with_suffix(".gif")
    return Picture(
        text,
        assets.copy(file, stem + file.suffix),
        video_type=_VIDEO_TYPES[file.suffix],
        gif=assets.copy(gif, f"{stem}.gif") if gif.is_file() else None,
    )


def _still(file: Path, stem: str, text: str, assets: Assets) -> Picture:
    copied = assets.copy_picture(file, stem)
    return Picture(f"{file} is no image") if copied is None else Picture(text, *copied)
