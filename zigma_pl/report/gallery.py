"""Samples on the page: grids that were drawn with the same seeds for every row, videos, and how they came about."""

from pathlib import Path

from zigma_pl.report.assets import Assets
from zigma_pl.report.charts import swatch
from zigma_pl.report.markup import Markup, tag
from zigma_pl.report.results import Result
from zigma_pl.report.tables import View

NUM_PREVIEWS = 4
_VIDEO_TYPES = {".mp4": "video/mp4", ".webm": "video/webm"}


def samples(view: View, assets: Assets) -> Markup:
    """Return the sample grid, or the videos, of the first seed of each row that was run."""
    figures = []
    for place, line in enumerate(view.lines):
        for result in line.results[:1]:
            caption = tag("figcaption", swatch(place), f"{line.row.label}, {_how(result)}")
            pictures = _pictures(result, line.row.label, assets)
            figures += [tag("figure", caption, picture) for picture in pictures] or [tag("figure", caption)]
    return tag("div", figures, class_="pictures")


def previews(result: Result, label: str, assets: Assets) -> Markup | None:
    """Return some of the grids that training drew as it went on; None where there is no log folder."""
    folder = result.record.training.get("log_folder")
    files = sorted((result.locate(folder) / "previews").glob("step_*.png")) if folder else []
    if not files:
        return None
    places = range(min(NUM_PREVIEWS, len(files)))
    chosen = [files[round(place * (len(files) - 1) / max(1, len(places) - 1))] for place in places]
    figures = []
    for file in chosen:
        step = int(file.stem.removeprefix("step_"))
        stem = f"previews/{result.record.scale}/{result.file.stem}_{step}"
        shown = _shown(file, stem, f"Samples of {label} at step {step}", assets)
        figures.append(tag("figure", tag("figcaption", f"step {step:,}"), shown))
    return tag("div", figures, class_="pictures")


def _pictures(result: Result, label: str, assets: Assets) -> list[Markup | list[Markup]]:
    """Return the videos of a record, or its grid of pictures."""
    pictures = result.record.pictures
    paths = pictures.get("clips") or [pictures.get("grid")]
    stem = f"pictures/{result.record.scale}/{result.file.stem}"
    return [
        _shown(result.locate(path), f"{stem}_{number}", f"Samples of {label}", assets)
        for number, path in enumerate(paths)
        if path
    ]


def _how(result: Result) -> str:
    protocol = result.record.protocol
    seed = f"seed {result.seed}" if result.seed is not None else "seed not stated"
    calls = protocol.get("num_network_calls")
    return seed + (f", {calls} network calls" if calls else "")


def _shown(file: Path, stem: str, text: str, assets: Assets) -> Markup | list[Markup]:
    """Return a picture or a video, or that the file is not there."""
    if not file.is_file():
        return tag("p", f"{file} is not there", class_="absent")
    if file.suffix in _VIDEO_TYPES:
        return _video(file, stem, text, assets)
    copied = assets.copy_picture(file, stem)
    if copied is None:
        return tag("p", f"{file} is no picture", class_="absent")
    address, (width, height) = copied
    return tag("img", src=address, alt=text, width=width, height=height)


def _video(file: Path, stem: str, text: str, assets: Assets) -> list[Markup]:
    """Return a video that the reader starts, with a link to the GIF of the same name where there is one."""
    source = tag("source", src=assets.copy(file, stem + file.suffix), type=_VIDEO_TYPES[file.suffix])
    video = tag(
        "video", source, controls=True, muted=True, loop=True, playsinline=True, preload="metadata", aria_label=text
    )
    gif = file.with_suffix(".gif")
    if not gif.is_file():
        return [video]
    return [video, tag("a", "the same as GIF", href=assets.copy(gif, f"{stem}.gif"))]
