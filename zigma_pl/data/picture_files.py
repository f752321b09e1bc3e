"""Pictures that lie as files in folders: finding them, and a split that is a list of them."""

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

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

    Hidden files and folders, whose names begin with a dot, are left out; links to folders are followed.
    """
    names = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = Path(place).relative_to(folder).as_posix()
        prefix = "" if relative == "." else f"{relative}/"
        names += [f"{prefix}{name}" for name in files if name.lower().endswith(suffixes) and not name.startswith(".")]
    return sorted(names)


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
