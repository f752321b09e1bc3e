"""Image files in folders: finding them, and a split given by a list of files."""

import os
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path, PurePosixPath

from zigma_pl.core.errors import UserError
from zigma_pl.data.images import ImageDataset, ImageItem, decode_image

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class PictureFiles(ImageDataset):
    """A split given by a list of image files, with their classes or captions.

    Args:
        folder: folder of the images.
        names: paths relative to `folder`.
        class_ids: class of each image, in [0, num_classes), or None.
        captions: captions of each image, at least one, or None.
        upright: apply the orientation in the EXIF data.
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
        """Return the paths relative to the folder of the split."""
        return self.names


def find_pictures(folder: Path, suffixes: tuple[str, ...] = PICTURE_SUFFIXES) -> list[str]:
    """Return the images in a folder and its subfolders: sorted relative paths, separated by "/".

    Hidden files and folders (names that start with a dot) and special files are skipped. Symbolic links are followed,
    but every file and folder is listed once: under its real path if that is below the folder, else under its first path
    in sorted order. Broken links are kept, so that opening them raises an error that names them. A missing folder has
    no images.

    Raises:
        UserError: a folder cannot be read.
    """
    found: list[tuple[bool, str, tuple[int, int] | str]] = []  # whether it is a link, path, identity
    seen: set[tuple[int, int] | str] = set()
    folders, links = [("", folder)] if folder.is_dir() else [], list[tuple[str, Path]]()
    while folders or links:  # links come last, so that a folder is listed under its real path
        linked = not folders
        prefix, current = folders.pop() if folders else links.pop(0)
        if (identity := _identity(current)) in seen:
            continue
        seen.add(identity)
        for entry in _entries(current):
            name = f"{prefix}{entry.name}"
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                (links if entry.is_symlink() else folders).append((f"{name}/", current / entry.name))
            elif entry.name.lower().endswith(suffixes) and not _is_special(entry):
                found.append((linked or entry.is_symlink(), name, _identity(current / entry.name)))
    once = {identity: name for _, name, identity in sorted(found, reverse=True)}
    return sorted(once.values())


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=attrgetter("name"))
    except OSError as error:
        raise UserError(
            f"cannot list the images in '{folder}' ({error.strerror}): check its read permission"
        ) from error


def _identity(path: Path) -> tuple[int, int] | str:
    """Return an identity that is the same for all paths to a file or folder."""
    try:
        status = path.stat()
    except OSError:
        return str(path)
    return status.st_dev, status.st_ino


def _is_special(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry is a FIFO, socket or device."""
    return not entry.is_file() and os.path.exists(entry.path)


def climbs_out(name: str) -> bool:
    """Return whether a path read from a file could point outside the folder that it is relative to."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def clean_captions(captions: Iterable[str]) -> list[str]:
    """Return the captions with all whitespace collapsed to single spaces; empty ones are dropped."""
    cleaned = (" ".join(caption.split()) for caption in captions)
    return [caption for caption in cleaned if caption]


def evenly_spaced(length: int, count: int) -> list[int]:
    """Return `count` indices evenly spaced over a list of `length`; all indices if count >= length."""
    count = min(count, length)
    return [i * length // count for i in range(count)]
