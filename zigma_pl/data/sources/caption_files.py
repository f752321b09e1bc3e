"""Captions of the images in a folder: captions.jsonl for all of them, or a text file next to each."""

import io
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, ValidationError

from zigma_pl.core.errors import UserError
from zigma_pl.core.files import read_regular
from zigma_pl.core.records import problems
from zigma_pl.data.picture_files import clean_captions, climbs_out


class CaptionLine(BaseModel):
    """A line of captions.jsonl; other keys are ignored."""

    model_config = ConfigDict(strict=True)

    file_name: str
    caption: str | None = None
    captions: list[str] | None = None


def read_captions(path: Path) -> dict[str, list[str]]:
    """Return the captions of each image in a `captions.jsonl`, by its path relative to the file's folder.

    Raises:
        UserError: the file is missing, or a line is invalid, has no caption, repeats an image, or names one outside the
            folder.
    """
    captions: dict[str, list[str]] = {}
    first_line: dict[str, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        name, texts = _parse_line(line, f"{path}, line {number}")
        if name in captions:
            raise UserError(
                f"{path}, line {number}: {name[:200]!r} is already listed in line {first_line[name]}: write several "
                'captions in one line, as "captions": [...]'
            )
        captions[name], first_line[name] = texts, number
    return captions


def read_caption_texts(root: Path, names: Iterable[str]) -> list[list[str]]:
    """Return the captions of images, each from the text file of the same name: one caption per line.

    Args:
        root: folder of the images.
        names: paths of the images, relative to `root`.

    Raises:
        UserError: a text file is missing, unreadable or empty.
    """
    captions = []
    for name in names:
        path = (root / name).with_suffix(".txt")
        captions.append(clean_captions(_lines(path)))
        if not captions[-1]:
            raise UserError(f"{path} is empty: write the captions of '{name}' into it, or remove the image")
    return captions


def _lines(path: Path) -> list[str]:
    try:
        # Not str.splitlines, which also splits at other separators, such as form feeds.
        return io.StringIO(read_regular(path).decode("utf-8-sig"), newline=None).readlines()
    except FileNotFoundError as error:
        raise UserError(
            f"{path} does not exist: write the captions of the image into it, one per line, or those of all "
            "images into captions.jsonl, or set data.condition to 'none' or 'class'"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the captions in {path} ({error}): save them as UTF-8 text") from error


def _parse_line(line: str, where: str) -> tuple[str, list[str]]:
    form = 'write {"file_name": "folder/1.png", "caption": "..."}, or a list of strings under "captions"'
    try:
        entry = CaptionLine.model_validate_json(line)
    except ValidationError as error:
        raise UserError(f"{where} is invalid ({problems(error)}): {form}") from error
    name = entry.file_name
    if climbs_out(name):
        raise UserError(f"{where}: file_name {name[:200]!r} points outside the folder: use paths relative to it")
    texts = entry.captions if entry.caption is None else [entry.caption]
    if texts is None:
        raise UserError(f"{where} has no caption: {form}")
    cleaned = clean_captions(texts)
    if not cleaned:
        raise UserError(f"{where}: the caption of {name[:200]!r} is empty: add one, or remove the image")
    return str(PurePosixPath(name)), cleaned
