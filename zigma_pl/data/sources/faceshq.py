"""FacesHQ: CelebA-HQ and FFHQ together, 100,000 aligned faces at 1024 x 1024, without a condition.

FacesHQ cannot be downloaded as one data set. Sources: CelebA-HQ (Karras et al., arXiv:1710.10196) as unpacked from
CelebAMask-HQ.zip of github.com/switchablenorms/CelebAMask-HQ, `CelebAMask-HQ/CelebA-HQ-img/<id>.jpg`; FFHQ (Karras et
al., arXiv:1812.04948) from github.com/NVlabs/ffhq-dataset, `images1024x1024/<thousands>/<id>.png`. The union and its
lists come from github.com/CompVis/taming-transformers, where CelebA-HQ is in `celebahq/imgHQ<id>.npy` and FFHQ in
`ffhq/<id>.png`.
"""

from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from PIL import Image

from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.data.base import Split
from zigma_pl.data.images import MAX_PIXELS, ImageItem
from zigma_pl.data.npy import map_npy
from zigma_pl.data.picture_files import PICTURE_SUFFIXES, PictureFiles, evenly_spaced, find_pictures
from zigma_pl.data.sources.downloaded import DownloadedDataModule
from zigma_pl.data.sources.split_lists import number_in_name, read_number_list
from zigma_pl.data.synthetic.faces import write_faceshq

REMEDY = (
    "expected <root>/CelebAMask-HQ/CelebA-HQ-img/<id>.jpg and <root>/ffhq/images1024x1024/<thousands>/<id>.png; set "
    "data.root, or data.celeba_hq_folder and data.ffhq_folder if they are elsewhere, or `synthetic: true` in the data "
    "section (--data.synthetic true) to use a small synthetic data set"
)


class Source(NamedTuple):
    """One of the two data sets.

    Ids are 0 to num_images - 1, and ids from num_train on are held out. `folders` are the usual folders below root.
    """

    name: str
    option: str
    num_images: int
    num_train: int
    folders: tuple[str, ...]
    lists: dict[Literal["train", "test"], str]


CELEBA_HQ = Source(
    name="CelebA-HQ",
    option="celeba_hq_folder",
    num_images=30_000,
    num_train=27_000,
    folders=("CelebAMask-HQ/CelebA-HQ-img", "CelebA-HQ-img", "celebahq", "celeba-hq", "CelebA-HQ"),
    lists={"train": "celebahqtrain.txt", "test": "celebahqvalidation.txt"},
)
FFHQ = Source(
    name="FFHQ",
    option="ffhq_folder",
    num_images=70_000,
    num_train=60_000,
    folders=("ffhq/images1024x1024", "ffhq-dataset/images1024x1024", "images1024x1024", "ffhq", "FFHQ"),
    lists={"train": "ffhqtrain.txt", "test": "ffhqvalidation.txt"},
)


class FacesHQ(DownloadedDataModule):
    """CelebA-HQ and FFHQ, unconditional.

    The splits do not depend on the seed. With `split_by: id`, CelebA-HQ ids below 27,000 and FFHQ ids below 60,000 are
    for training, the other 3,000 and 10,000 for testing. For FFHQ this is the official split. CelebA-HQ has no official
    split; 27,000 / 3,000 are common sizes, but the choice of images differs between papers. With `split_by: lists`, the
    lists of taming-transformers are read: `<root>/celebahqtrain.txt`, `celebahqvalidation.txt`, `ffhqtrain.txt` and
    `ffhqvalidation.txt`, one file name per line (25,000 / 5,000 and 60,000 / 10,000, shuffled); names are matched by
    the number in them. `num_validation_images` images of the test split, evenly spaced, are used for validation, so do
    not select a model by them and then report the test score as held out.

    Expected under `root`: CelebA-HQ in `CelebAMask-HQ/CelebA-HQ-img` (or `CelebA-HQ-img`, `celebahq`, `celeba-hq`,
    `CelebA-HQ`), FFHQ in `ffhq/images1024x1024` (or `ffhq-dataset/images1024x1024`, `images1024x1024`, `ffhq`, `FFHQ`),
    flat or in sub-folders, as <id> or imgHQ<id> with .jpg, .png, .webp or .npy (uint8, 3 x height x width).

    Args:
        root: folder that contains both data sets.
        image_size_px: side of the square images.
        celeba_hq_folder: folder of the CelebA-HQ images, relative to root or absolute; None for the usual folders.
        ffhq_folder: folder of the FFHQ images, relative to root or absolute; None for the usual folders.
        split_by: split into training and test images by "id" or by "lists".
        num_validation_images: number of images of the test split to validate on.
        num_workers: worker processes that decode images; 0 decodes in the main process.
        options: options of `DownloadedDataModule`.
    """

    synthetic_version = 1
    smallest_synthetic = 4

    options_that_only_locate = ("root", "celeba_hq_folder", "ffhq_folder")

    def __init__(
        self,
        root: str = "data/faceshq",
        image_size_px: int = 1024,
        celeba_hq_folder: str | None = None,
        ffhq_folder: str | None = None,
        split_by: Literal["id", "lists"] = "id",
        num_validation_images: int = 500,
        num_workers: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(root=root, image_size_px=image_size_px, num_workers=num_workers, **options)
        check_whole_numbers("data", num_validation_images=num_validation_images)
        self.celeba_hq_folder = celeba_hq_folder
        self.ffhq_folder = ffhq_folder
        self.split_by = split_by
        self.num_validation_images = num_validation_images

    def write_synthetic(self, folder: Path) -> None:
        """Write cartoon faces, 30 % of them as CelebA-HQ, with ids spread over the real range, and the lists."""
        write_faceshq(folder, self.num_synthetic_items, self.image_size_px)

    def load_split(self, split: Split) -> PictureFiles:
        """Open one split, CelebA-HQ first, each sorted by id, creating the synthetic data first if needed.

        Raises:
            UserError: a folder, images or lists are missing or inconsistent.
        """
        part: Literal["train", "test"] = "train" if split == "train" else "test"
        names = [
            pictures[number] for source, pictures in self._pictures for number in self._numbers(source, pictures, part)
        ]
        if split == "validation":
            names = [names[i] for i in evenly_spaced(len(names), self.num_validation_images)]
        return FaceFiles(self.folder, names)

    @cached_property
    def _pictures(self) -> list[tuple[Source, dict[int, str]]]:
        """Both data sets, with the file of each id."""
        if not self.folder.is_dir():
            raise UserError(f"FacesHQ: folder '{self.folder}' does not exist; {REMEDY}")
        folders = ((CELEBA_HQ, self.celeba_hq_folder), (FFHQ, self.ffhq_folder))
        return [(source, self._find(source, folder)) for source, folder in folders]

    def _find(self, source: Source, given: str | None) -> dict[int, str]:
        candidates = source.folders if given is None or self.synthetic else (given,)
        for folder in candidates:
            pictures = pictures_by_number(self.folder, folder, source)
            if pictures:
                if len(pictures) < source.num_images and not self.synthetic:
                    rank_zero_warn(
                        f"FacesHQ: '{self.folder / folder}' has {len(pictures)} of the {source.num_images} images of "
                        f"{source.name}; scores are not comparable with those on the whole data set"
                    )
                return pictures
        raise UserError(
            f"FacesHQ: '{self.folder}' has no images of {source.name} in {', '.join(candidates)} "
            f"(data.{source.option}); {REMEDY}"
        )

    def _numbers(self, source: Source, pictures: dict[int, str], part: Literal["train", "test"]) -> list[int]:
        if self.split_by == "lists":
            return self._listed(source, pictures)[part]
        numbers = sorted(number for number in pictures if (number < source.num_train) == (part == "train"))
        if not numbers:
            where = "below" if part == "train" else "from"
            raise UserError(
                f"FacesHQ: '{self.folder}' has no {part}ing images of {source.name}, whose ids are {where} "
                f"{source.num_train}; {REMEDY}"
            )
        return numbers

    def _listed(self, source: Source, pictures: dict[int, str]) -> dict[Literal["train", "test"], list[int]]:
        """Return the ids in the two lists of one data set, after checking that their images exist."""
        paths = {part: self.folder / name for part, name in source.lists.items()}
        listed = {part: sorted(read_number_list(path)) for part, path in paths.items()}
        shared = set(listed["train"]) & set(listed["test"])
        if shared:
            raise UserError(
                f"FacesHQ: {paths['train']} and {paths['test']} share {len(shared)} ids, such as {min(shared)}; "
                "copy them from taming-transformers again, or set data.split_by to 'id'"
            )
        for part, numbers in listed.items():
            missing = [number for number in numbers if number not in pictures]
            if missing:
                raise UserError(
                    f"FacesHQ: {paths[part]} lists {len(missing)} ids without an image, such as {missing[0]}: "
                    "add the images, or remove the ids"
                )
        return listed


class FaceFiles(PictureFiles):
    """Image files, some of which may be NumPy arrays."""

    def __getitem__(self, index: int) -> ImageItem:
        if self.names[index].endswith(".npy"):
            return ImageItem(read_array(self.folder / self.names[index]))
        return super().__getitem__(index)


def pictures_by_number(root: Path, folder: str, source: Source) -> dict[int, str]:
    """Return the file of each id below a folder, relative to root; files without an id are skipped.

    Raises:
        UserError: two files have the same id, or an id is out of range.
    """
    pictures: dict[int, str] = {}
    for name in find_pictures(root / folder, (*PICTURE_SUFFIXES, ".npy")):
        number = number_in_name(name)
        if number is None:
            continue
        path = f"{folder}/{name}"
        if number in pictures:
            raise UserError(
                f"FacesHQ: '{root / pictures[number]}' and '{root / path}' are both image {number} of {source.name}: "
                f"keep only one copy below '{root / folder}', or set data.{source.option} to a subfolder"
            )
        if number >= source.num_images:
            raise UserError(
                f"FacesHQ: '{root / path}' does not belong to {source.name}, whose ids are 0 to "
                f"{source.num_images - 1}: remove it, or set data.{source.option} to the correct folder"
            )
        pictures[number] = path
    return pictures


def read_array(path: Path) -> Image.Image:
    """Read an image stored as a NumPy array, ([1,] 3, height, width) uint8; pickled arrays are rejected.

    Raises:
        UserError: the file is missing, damaged or has other content.
    """
    try:
        pixels = map_npy(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the image {path} ({error}): replace it with an intact copy") from error
    if pixels.dtype != np.uint8 or pixels.shape[:-2] not in ((3,), (1, 3)) or not 0 < pixels.size <= 3 * MAX_PIXELS:
        raise UserError(
            f"{path}: expected an image of (3, height, width) uint8, got {pixels.shape} {pixels.dtype}: "
            "replace it with an intact copy"
        )
    return Image.fromarray(pixels.reshape(pixels.shape[-3:]).transpose(1, 2, 0).copy())
