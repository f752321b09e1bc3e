"""Multi-Modal-CelebA-HQ in its published layout: 30,000 faces with ten captions each.

Source: github.com/IIGROUP/MM-CelebA-HQ-Dataset (Xia et al., TediGAN, arXiv:2012.03308), for non-commercial research.
"""

import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from zigma_pl.core.errors import UserError
from zigma_pl.core.files import read_regular
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.data.base import Split
from zigma_pl.data.images import ImageDataset, ImageItem, decode_image
from zigma_pl.data.sources.downloaded import DownloadedDataModule
from zigma_pl.data.sources.split_lists import read_splits
from zigma_pl.data.synthetic.faces import write_mm_celeba_hq

# The archives unpack to different folders, and many users have the same images from CelebAMask-HQ.
IMAGE_FOLDERS = ("images", "image/images", "image", "CelebA-HQ-img", "CelebAMask-HQ/CelebA-HQ-img")
CAPTION_FOLDERS = ("celeba-caption", "text/celeba-caption")

REMEDY = (
    "expected <root>/images/<id>.jpg, <root>/celeba-caption/<id>.txt with ten captions each, "
    "<root>/train/filenames.pickle and <root>/test/filenames.pickle; set data.root to the data set's folder, or "
    "`synthetic: true` in the data section (--data.synthetic true) to use a small synthetic data set"
)


class CaptionedFaces(ImageDataset):
    """The images `<id>.jpg` of one split and their caption files `<id>.txt`, in the order of `image_ids`."""

    def __init__(self, image_folder: Path, caption_folder: Path, image_ids: list[int], with_captions: bool) -> None:
        self.image_folder = image_folder
        self.caption_folder = caption_folder
        self.image_ids = image_ids
        self.with_captions = with_captions

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> ImageItem:
        image_id = self.image_ids[index]
        image = decode_image(self.image_folder / f"{image_id}.jpg")
        if not self.with_captions:
            return ImageItem(image)
        return ImageItem(image, captions=read_caption_file(self.caption_folder / f"{image_id}.txt"))

    def item_names(self) -> Iterable[str]:
        """Return the ids."""
        return map(str, self.image_ids)


class FacesOnDisk:
    """The data set in `root`: its folders, the ids found in them, and the ids of "train" and "test".

    Raises:
        UserError: `root`, the images, the captions or one of the two lists are missing, or the lists contradict.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise UserError(f"MM-CelebA-HQ: folder '{root}' does not exist; {REMEDY}")
        self.root = root
        self.image_folder, self.with_image = find_files(root, IMAGE_FOLDERS, ".jpg")
        self.caption_folder, self.with_captions = find_files(root, CAPTION_FOLDERS, ".txt")
        self.image_ids = read_splits(root, self.with_image)

    def split(self, name: Literal["train", "test"], with_captions: bool = True) -> CaptionedFaces:
        """Return one split, sorted by id, after checking that each id has an image and a caption file."""
        image_ids = sorted(self.image_ids[name])
        if not image_ids:
            raise UserError(f"MM-CelebA-HQ in {self.root}: there are no images for '{name}'; {REMEDY}")
        for present, what in ((self.with_image, "image <id>.jpg"), (self.with_captions, "caption file <id>.txt")):
            missing = [image_id for image_id in image_ids if image_id not in present]
            if missing:
                raise UserError(
                    f"MM-CelebA-HQ in {self.root}: no {what} for {len(missing)} of the {len(image_ids)} ids of "
                    f"'{name}', such as {missing[0]}: unpack the archives again, or remove the ids from the lists"
                )
        return CaptionedFaces(self.image_folder, self.caption_folder, image_ids, with_captions)


def find_files(root: Path, candidates: tuple[str, ...], suffix: str) -> tuple[Path, set[int]]:
    """Return the first of the folders under `root` that has files `<id><suffix>`, and their ids."""
    for folder in (root / name for name in candidates):
        image_ids = ids_of_files(folder, suffix) if folder.is_dir() else set()
        if image_ids:
            return folder, image_ids
    raise UserError(f"MM-CelebA-HQ: '{root}' has no <id>{suffix} in any of {', '.join(candidates)}; {REMEDY}")


def ids_of_files(folder: Path, suffix: str) -> set[int]:
    """Return the ids of all files `<id><suffix>` in a folder."""
    stems = (name.removesuffix(suffix) for name in os.listdir(folder) if name.endswith(suffix))
    return {int(stem) for stem in stems if stem.isdecimal() and len(stem) < 10}


class MMCelebAHQ(DownloadedDataModule):
    """Multi-Modal-CelebA-HQ, with or without captions as condition.

    Splits: the published 24,000 images for training and 6,000 for testing. There is no published validation split: the
    first `num_validation_images` images of the test split (by id) are used, so do not select a model by them and then
    report the test score as held out.

    Expected under `root`: `images/<id>.jpg` (or `image/images`, `image`, `CelebA-HQ-img`,
    `CelebAMask-HQ/CelebA-HQ-img`), `celeba-caption/<id>.txt` (or `text/celeba-caption`) with one caption per line, and
    `train/filenames.pickle`, `test/filenames.pickle`. Without the pickles, ids below 24,000 are for training.

    Args:
        root: folder of the data set.
        condition: "caption" or "none".
        num_validation_images: number of images of the test split to validate on.
        num_workers: worker processes that decode images; 0 decodes in the main process.
        options: options of `DownloadedDataModule`.
    """

    synthetic_version = 1

    def __init__(
        self,
        root: str = "data/mm-celeba-hq",
        condition: Literal["caption", "none"] = "caption",
        num_validation_images: int = 500,
        num_workers: int = 2,
        **options: Any,
    ) -> None:
        self.has_captions = condition == "caption"
        super().__init__(root=root, num_workers=num_workers, **options)
        check_whole_numbers("data", num_validation_images=num_validation_images)
        self.conditioned_on = condition
        self.num_validation_images = num_validation_images

    def write_synthetic(self, folder: Path) -> None:
        """Write captioned cartoon faces; four fifths are for training."""
        write_mm_celeba_hq(folder, self.num_synthetic_items, self.image_size_px)

    def described(self) -> dict[str, Any]:
        """Return, as plain values, everything that determines the items of a split and their content."""
        return {**super().described(), "condition": self.conditioned_on}

    def load_split(self, split: Split) -> CaptionedFaces:
        """Open one split, creating the synthetic data first if needed.

        Raises:
            UserError: folder, images, captions or lists are missing, or the lists contradict each other.
        """
        faces = self._faces.split("train" if split == "train" else "test", self.has_captions)
        if split == "validation":
            faces.image_ids = faces.image_ids[: self.num_validation_images]
        return faces

    @cached_property
    def _faces(self) -> FacesOnDisk:
        return FacesOnDisk(self.folder)


def read_caption_file(path: Path) -> list[str]:
    """Return the captions in a file, one per line; empty lines are skipped.

    Raises:
        UserError: the file cannot be read, or has no captions.
    """
    try:
        lines = read_regular(path).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the captions in {path} ({error}): unpack the captions again") from error
    captions = [line.strip() for line in lines if line.strip()]
    if not captions:
        raise UserError(f"{path} has no captions: write one per line, or remove the image from the split's list")
    return captions
