"""Your own images in a folder, with classes, captions or no condition."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_numbers, check_whole_numbers
from zigma_pl.data.base import ImageDataModule, Split
from zigma_pl.data.picture_files import PICTURE_SUFFIXES, PictureFiles, find_pictures
from zigma_pl.data.sources.caption_files import read_caption_texts, read_captions

CAPTIONS_NAME = "captions.jsonl"
OTHER_SUFFIXES = (".gif", ".tif", ".tiff", ".avif", ".heic", ".jp2", ".jxl", ".ppm", ".pgm")  # skipped with a warning
SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "val"),
    "test": ("test",),
}


class ImageFolder(ImageDataModule):
    """Images (jpg, jpeg, png, webp, bmp) in a folder and its subfolders, sorted by name.

    Transparent images are composited onto white, EXIF orientation is applied, and hidden files are skipped.
    Conditions:

    - "none".
    - "class": the name of the first subfolder (below train/, validation/ and test/ if they exist). Class ids follow the
      sorted names. A class folder without images is an error.
    - "caption": `<root>/captions.jsonl` has one line per image: {"file_name": "cats/1.png", "caption": "A cat"}, or
      {"file_name": "cats/1.png", "captions": ["A cat", "Something furry"]} for several captions. File names are
      relative to `root`. Without this file, each image has a text file, cats/1.txt for cats/1.png, with one caption per
      line. If an image has several captions, each training sample draws one of them.

    Splits: if there is a folder train/, the splits are the folders train/, validation/ (or val/) and test/. Otherwise
    all images are split by a hash of their path below `root`, and the fractions `validation_share` and `test_share` are
    held out. If there is train/ but not one of the others, that split is taken from train/ in the same way. An image
    keeps its split when other images are added or removed; the seed has no influence. In a small folder, a split that
    would be empty gets the image whose hash is nearest, so all splits have images if there are at least three.

    Args:
        root: folder of the images.
        condition: "none", "class" or "caption".
        validation_share: fraction of the images to validate on, if there is no folder for validation.
        test_share: fraction of the images to test on, if there is no folder for testing.
        num_classes: number of classes; None counts the folders. If given, sampling does not need the folder.
        num_workers: worker processes that decode images; 0 decodes in the main process.
        options: options of `ImageDataModule`.
    """

    def __init__(
        self,
        root: str,
        condition: Literal["none", "class", "caption"] = "none",
        validation_share: float = 0.05,
        test_share: float = 0.05,
        num_classes: int | None = None,
        num_workers: int = 2,
        **options: Any,
    ) -> None:
        self.has_captions = condition == "caption"
        super().__init__(num_workers=num_workers, **options)
        check_numbers("data", least=0, below=1, validation_share=validation_share, test_share=test_share)
        check_whole_numbers("data", num_classes=num_classes)
        if validation_share + test_share >= 1:
            raise UserError(
                f"data.validation_share {validation_share} and data.test_share {test_share} leave no images for "
                "training: lower them"
            )
        if num_classes is not None and condition != "class":
            raise UserError(f"data.num_classes needs data.condition 'class', got '{condition}': remove num_classes")
        self.root = root
        self.conditioned_on = condition
        self.validation_share = validation_share
        self.test_share = test_share
        self._num_classes = num_classes

    @property
    def num_classes(self) -> int | None:
        """Number of classes: as passed, or of the cache, or counted in the folder; None without classes."""
        if self.conditioned_on == "class" and self._num_classes is None:
            prepared = self.prepared
            self._num_classes = len(self._classes) if prepared is None else prepared.content.num_classes
        return self._num_classes

    @num_classes.setter
    def num_classes(self, num_classes: int | None) -> None:
        self._num_classes = num_classes

    @property
    def class_names(self) -> list[str] | None:  # type: ignore[override]  # an attribute of the base class
        """Names of the class folders; None without classes, or if the folder does not exist."""
        is_there = self.conditioned_on == "class" and Path(self.root).is_dir()
        return [os.fsencode(name).decode(errors="replace") for name in self._classes] if is_there else None

    def described(self) -> dict[str, Any]:
        """Return, as plain values, everything that determines the items of a split and their content."""
        return {**super().described(), "condition": self.conditioned_on}

    def load_split(self, split: Split) -> PictureFiles:
        """Open one split.

        Raises:
            UserError: the split has no images, or classes or captions do not match the images.
        """
        names = self._names_of_split(split)
        if not names:
            share = "" if split == "train" else f", or raise data.{split}_share (now {getattr(self, f'{split}_share')})"
            folder = " or ".join(f"{name}/" for name in SPLIT_FOLDERS[split])
            raise UserError(f"ImageFolder: '{self.root}' has no images for {split}: add some to {folder}{share}")
        return PictureFiles(
            Path(self.root),
            names,
            class_ids=[self._class_id(name) for name in names] if self.conditioned_on == "class" else None,
            captions=self._captions_of(names) if self.conditioned_on == "caption" else None,
            upright=True,
        )

    @cached_property
    def _names(self) -> list[str]:
        """Paths of all images, relative to root."""
        root = Path(self.root)
        if not root.is_dir():
            raise UserError(f"ImageFolder: folder '{root}' does not exist: set data.root to the folder of your images")
        found = find_pictures(root, PICTURE_SUFFIXES + OTHER_SUFFIXES)
        names = [name for name in found if name.lower().endswith(PICTURE_SUFFIXES)]
        suffixes = ", ".join(PICTURE_SUFFIXES)
        if not names:
            raise UserError(
                f"ImageFolder: '{root}' and its subfolders have no images ({suffixes}): set data.root to another folder"
            )
        if others := sorted(set(found).difference(names)):
            rank_zero_warn(
                f"ImageFolder: {len(others)} images in '{root}' have unsupported formats, such as {others[0]!r}: "
                f"convert them to one of {suffixes}, or move them away"
            )
        self._check_in_split_folders(names)
        return names

    def _check_in_split_folders(self, names: list[str]) -> None:
        """Raise a UserError if images are outside the folders of the splits, as they would be in no split."""
        outside = [name for name in names if self._folders and not name.startswith(tuple(self._folders.values()))]
        if outside:
            known = ", ".join(f"{name}/" for names in SPLIT_FOLDERS.values() for name in names)
            raise UserError(
                f"ImageFolder: '{self.root}' has train/, but {len(outside)} images are outside the folders of the "
                f"splits ({known}), such as {outside[0]!r}: move them, or rename their folder"
            )

    @cached_property
    def _folders(self) -> dict[Split, str]:
        """Splits with their own folder, and its name followed by a slash; empty without train/."""
        found: dict[Split, str] = {}
        for split, names in SPLIT_FOLDERS.items():
            there = [name for name in names if (Path(self.root) / name).is_dir()]
            if len(there) > 1:
                raise UserError(f"ImageFolder: '{self.root}' has both {' and '.join(there)}: merge them into one")
            if there:
                found[split] = f"{there[0]}/"
        return found if "train" in found else {}

    def _names_of_split(self, split: Split) -> list[str]:
        own = self._folders.get(split, "")
        if split != "train" and own:
            return [name for name in self._names if name.startswith(own)]
        return [name for name, assigned in self._hashed.items() if assigned == split]

    @cached_property
    def _hashed(self) -> dict[str, Split]:
        """Split of each image that is assigned by its hash."""
        pool = self._folders.get("train", "")
        shares: dict[Split, float] = {"validation": self.validation_share, "test": self.test_share}
        shares = {split: share for split, share in shares.items() if split not in self._folders}
        splits = split_by_hash([name.removeprefix(pool) for name in self._names if name.startswith(pool)], shares)
        return {pool + name: split for name, split in splits.items()}

    @cached_property
    def _classes(self) -> dict[str, int]:
        """Class id of each class folder."""
        prefix = self._folders.get("train", "")
        pool = Path(self.root) / prefix
        folders = sorted(path.name for path in pool.glob("*/") if not path.name.startswith("."))
        filled = {self._class_name(name) for name in self._names if name.startswith(prefix)}
        for folder in folders:
            if folder not in filled:
                raise UserError(
                    f"ImageFolder: class folder '{pool / folder}' has no images: add images, or remove the folder"
                )
        return {name: class_id for class_id, name in enumerate(folders)}

    def _class_name(self, name: str) -> str:
        """Return the first folder in an image's path, below the folder of its split."""
        split_folder = next((folder for folder in self._folders.values() if name.startswith(folder)), "")
        top, separator, _ = name.removeprefix(split_folder).partition("/")
        if not separator:
            raise UserError(
                f"ImageFolder: '{Path(self.root) / name}' is not in a class folder: move it into one, or set "
                "data.condition to 'none' or 'caption'"
            )
        return top

    def _class_id(self, name: str) -> int:
        class_id = self._classes.get(self._class_name(name))
        if class_id is None:
            raise UserError(
                f"ImageFolder: the class of '{Path(self.root) / name}' has no folder in train/: "
                "add training images of this class, or remove the image"
            )
        if class_id >= (self.num_classes or 0):
            raise UserError(
                f"ImageFolder: data.num_classes is {self.num_classes}, but '{self.root}' has {len(self._classes)} "
                "class folders: correct or remove num_classes"
            )
        return class_id

    @cached_property
    def _captions(self) -> dict[str, list[str]]:
        captions = read_captions(Path(self.root) / CAPTIONS_NAME)
        unknown = sorted(set(captions).difference(self._names))
        if unknown:
            raise UserError(
                f"{Path(self.root) / CAPTIONS_NAME} lists {len(unknown)} unknown images; the first, "
                f"{unknown[0][:200]!r}, {self._why_not_read(unknown[0])}, or remove their lines"
            )
        return captions

    def _why_not_read(self, name: str) -> str:
        """Return why an image listed in captions.jsonl is not read, and the remedy."""
        if not name.lower().endswith(PICTURE_SUFFIXES):
            return f"is not one of {', '.join(PICTURE_SUFFIXES)}: convert them"
        if not os.path.exists(Path(self.root) / name):
            return f"does not exist in '{self.root}': add them"
        if any(part.startswith(".") for part in PurePosixPath(name).parts):
            return "is hidden: rename them"
        return "is not a file, or is a link to a file that is read under another name: use that name"

    def _captions_of(self, names: list[str]) -> list[list[str]]:
        if not (Path(self.root) / CAPTIONS_NAME).exists():
            return read_caption_texts(Path(self.root), names)
        without = [name for name in names if name not in self._captions]
        if without:
            raise UserError(
                f"{Path(self.root) / CAPTIONS_NAME} has no line for {len(without)} of {len(names)} images, "
                f"such as {without[0]}: add their captions, or remove the images"
            )
        return [self._captions[name] for name in names]


def split_by_hash(names: Iterable[str], fractions: Mapping[Split, float]) -> dict[str, Split]:
    """Return the split of each name.

    Names are hashed to [0, 1). Each held-out split gets a part of this interval as long as its fraction, from 0 on, and
    "train" the rest. If a split would be empty, it gets the name with the nearest hash.

    Args:
        names: names, each once.
        fractions: fraction of each held-out split; one with fraction 0 stays empty.
    """
    bounds: dict[Split, tuple[float, float]] = {}
    start = 0.0
    for split, fraction in fractions.items():
        if fraction:
            bounds[split] = start, start + fraction
            start += fraction
    bounds["train"] = start, 1.0
    hashes = {name: _hash(name) for name in names}
    splits: dict[str, Split] = {}
    for name, at in hashes.items():
        splits[name] = next((split for split, (_, end) in bounds.items() if at < end), "train")
    for split, (start, end) in bounds.items():
        sizes = Counter(splits.values())
        movable = [] if sizes[split] else [name for name in splits if sizes[splits[name]] > 1]
        if movable:
            distances = {name: max(start - hashes[name], hashes[name] - end) for name in movable}
            splits[min(movable, key=lambda name: (distances[name], name))] = split
    return splits


def _hash(name: str) -> float:
    """Return a hash of a name in [0, 1)."""
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64
