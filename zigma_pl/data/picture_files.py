"""Pictures that lie as files in folders: finding them, and a split that is a list of them."""

import os
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path, PurePosixPath

from zigma_pl.core.errors import UserError
from zigma_pl.data.images import ImageDataset, ImageItem, decode_image

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class PictureFiles(ImageDataset):
    """A split that is a list of picture files, with their classes or captions.

    Args:
        folder: where they lie.
        names: their paths, relative to `folder`.
        class_ids: class of each, in [0, num_classes), or None.
        captions: captions of each, at least one, or None.
        upright: turn a picture as the orientation in its EXIF data says.
    """

    def __init__(
        self,
        folder: Path,
        names: list[str],
        *,
        class_ids: list[int] | None = None,
        captions: list[list[str]] | None = None,
        upright: bool = False,
    ) -> None:
        self.folder = folder
        self.names = names
        self.class_ids = class_ids
        self.captions = captions
        self.upright = upright

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> ImageItem:
        return ImageItem(
            decode_image(self.folder / self.names[index], upright=self.upright),
            class_id=None if self.class_ids is None else self.class_ids[index],
            captions=None if self.captions is None else self.captions[index],
        )

    def item_names(self) -> list[str]:
        """Return the paths relative to the folder."""
        return self.names


def find_pictures(folder: Path, suffixes: tuple[str, ...] = PICTURE_SUFFIXES) -> list[str]:
    """Return the pictures anywhere below a folder: sorted relative names, with "/" between folders.

    Hidden files and folders, whose names begin with a dot, are left out, and so is what is neither a file nor a folder.
    Links are followed, but every folder and file counts once: where several names lead to it, that without a link, then
    the first in the order of names. A link that leads nowhere is kept; it is named when it is opened. There are none in
    a folder that is not there.

    Raises:
        UserError: a folder cannot be read.
    """
    found: list[tuple[bool, str, tuple[int, int] | str]] = []  # whether a link, name, what it is
    seen: set[tuple[int, int] | str] = set()
    folders, links = [("", folder)] if folder.is_dir() else [], list[tuple[str, Path]]()
    while folders or links:  # links come last, so that a folder keeps its own name
        linked = not folders
        prefix, place = folders.pop() if folders else links.pop(0)
        if (identity := _identity(place)) in seen:
            continue
        seen.add(identity)
        for entry in _entries(place):
            name = f"{prefix}{entry.name}"
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                (links if entry.is_symlink() else folders).append((f"{name}/", place / entry.name))
            elif entry.name.lower().endswith(suffixes) and not _is_special(entry):
                found.append((linked or entry.is_symlink(), name, _identity(place / entry.name)))
    once = {what: name for _, name, what in sorted(found, reverse=True)}
    return sorted(once.values())


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=attrgetter("name"))
    except OSError as error:
        raise UserError(
            f"cannot list the pictures in '{folder}' ({error.strerror}): give permission to read it"
        ) from error


def _identity(path: Path) -> tuple[int, int] | str:
    """Return what is equal for all names of a file or folder."""
    try:
        status = path.stat()
    except OSError:
        return str(path)
    return status.st_dev, status.st_ino


def _is_special(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry is a FIFO, socket or device."""
    return not entry.is_file() and os.path.exists(entry.path)


def climbs_out(name: str) -> bool:
    """Return whether a name taken from a file could lead out of the folder that it is relative to."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def clean_captions(captions: Iterable[str]) -> list[str]:
    """Return the captions without line breaks and runs of blanks; empty ones are left out."""
    cleaned = (" ".join(caption.split()) for caption in captions)
    return [caption for caption in cleaned if caption]


def evenly_spaced(length: int, number: int) -> list[int]:
    """Return `number` places in a list, spread over all of it; all of them if there are no more."""
    number = min(number, length)
    return [i * length // number for i in range(number)]
