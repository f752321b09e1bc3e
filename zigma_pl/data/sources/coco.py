"""MS-COCO in its published layout: photographs of everyday scenes with five captions each.

Source: cocodataset.org (Lin et al., arXiv:1405.0312). The archives train<year>.zip and val<year>.zip contain a folder
of the same name with COCO_train2014_<12 digits>.jpg, since 2017 <12 digits>.jpg; annotations_trainval<year>.zip
contains annotations/captions_train<year>.json with "images" (id, file_name, ...) and "annotations" (image_id, caption,
...).
"""

import os
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zigma_pl.core.errors import UserError
from zigma_pl.core.files import read_regular
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.core.records import problems
from zigma_pl.data.base import Split
from zigma_pl.data.picture_files import PictureFiles, clean_captions, climbs_out, evenly_spaced
from zigma_pl.data.sources.downloaded import DownloadedDataModule
from zigma_pl.data.synthetic.scenes import write_coco

REMEDY = (
    "expected images in <root>/train{year} and <root>/val{year} (or both below <root>/images), and "
    "<root>/annotations/captions_train{year}.json, captions_val{year}.json; set data.root and data.year to match your "
    "files, or `synthetic: true` in the data section (--data.synthetic true) to use a small synthetic data set"
)


ImageId = Annotated[int, Field(ge=0, lt=2**63)]


class _Published(BaseModel):
    """A JSON object of the published files; only the keys that are used are declared."""

    model_config = ConfigDict(strict=True)


class ListedImage(_Published):
    """An image in a caption file."""

    id: ImageId
    file_name: str = Field(max_length=255)


class Annotation(_Published):
    """A caption of an image."""

    image_id: ImageId
    caption: str


class CaptionFile(_Published):
    """A file such as captions_train2014.json."""

    images: list[ListedImage]
    annotations: list[Annotation]


class COCO(DownloadedDataModule):
    """MS-COCO with captions as condition; the shorter side is resized and the centre cropped.

    Splits: published "train" for training (82,783 images in 2014, 118,287 in 2017) and published "val" for testing
    (40,504 and 5,000), since the published test split has no captions. `num_validation_images` images of the test
    split, evenly spaced over the ids, are used for validation, so do not select a model by them and then report the
    test score as held out. The images of a split are sorted by id.

    Expected under `root`: `train2014`, `val2014` and `annotations/captions_train2014.json`, `captions_val2014.json`,
    likewise for 2017. Line breaks in captions are replaced by spaces, and empty captions are dropped; the published
    files have some of both. Grey images are converted to RGB.

    Args:
        root: folder of the data set.
        year: release, 2014 or 2017.
        num_validation_images: number of images of the test split to validate on.
        num_workers: worker processes that decode images; 0 decodes in the main process.
        options: options of `DownloadedDataModule`.
    """

    has_captions = True
    synthetic_version = 1

    def __init__(
        self,
        root: str = "data/coco",
        year: Literal[2014, 2017] = 2014,
        num_validation_images: int = 500,
        num_workers: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(root=root, num_workers=num_workers, **options)
        check_whole_numbers("data", num_validation_images=num_validation_images)
        self.year = year
        self.num_validation_images = num_validation_images

    @property
    def synthetic_name(self) -> str:
        """Folder name of the synthetic data, different for the two releases."""
        return f"{self.year}-{super().synthetic_name}"

    def write_synthetic(self, folder: Path) -> None:
        """Write captioned scenes of simple shapes; four fifths are for training."""
        write_coco(folder, self.num_synthetic_items, self.image_size_px, self.year)

    def load_split(self, split: Split) -> PictureFiles:
        """Open one split, creating the synthetic data first if needed.

        Raises:
            UserError: folder, annotations or images are missing, the annotations are invalid, or an image has no
                caption.
        """
        if split == "train":
            return self._open("train")
        images = self._val_images
        if split == "test":
            return images
        assert images.captions is not None
        chosen = evenly_spaced(len(images), self.num_validation_images)
        return PictureFiles(
            images.folder, [images.names[i] for i in chosen], captions=[images.captions[i] for i in chosen]
        )

    @cached_property
    def _val_images(self) -> PictureFiles:
        return self._open("val")

    def _open(self, part: Literal["train", "val"]) -> PictureFiles:
        name = f"{part}{self.year}"
        if not self.folder.is_dir():
            raise UserError(f"COCO: folder '{self.folder}' does not exist; {self._remedy}")
        annotations = self.folder / "annotations" / f"captions_{name}.json"
        if not annotations.is_file():
            raise UserError(f"COCO: caption file '{annotations}' does not exist; {self._remedy}")
        names, captions = read_annotations(annotations)
        return PictureFiles(self._picture_folder(name, names), names, captions=captions)

    def _picture_folder(self, name: str, names: list[str]) -> Path:
        """Return the folder of the images, after checking that none is missing."""
        folders = [folder for folder in (self.folder / name, self.folder / "images" / name) if folder.is_dir()]
        if not folders:
            raise UserError(f"COCO: image folder '{self.folder / name}' does not exist; {self._remedy}")
        missing = sorted(set(names).difference(os.listdir(folders[0])))
        if missing:
            raise UserError(
                f"COCO: {len(missing)} of the {len(names)} images listed in captions_{name}.json are not in "
                f"{folders[0]}, such as {missing[0]}: unpack {name}.zip again"
            )
        return folders[0]

    @property
    def _remedy(self) -> str:
        return REMEDY.format(year=self.year)


def read_annotations(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return file names and cleaned captions of all images in a COCO caption file, sorted by id.

    Raises:
        UserError: the file is not a valid caption file, lists an image twice or outside its folder, or has an image
            without captions.
    """
    try:
        content = CaptionFile.model_validate_json(read_regular(path))
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): unpack the annotation archive again") from error
    except ValidationError as error:
        raise UserError(
            f"{path} is not a valid COCO caption file ({problems(error)}): unpack captions_train or captions_val from "
            "the annotation archive again"
        ) from error
    images = sorted((image.id, image.file_name) for image in content.images)
    captions: dict[int, list[str]] = {image_id: [] for image_id, _ in images}
    _check_images(path, images, captions)
    for annotation in content.annotations:
        if annotation.image_id not in captions:
            raise UserError(
                f"{path} has a caption for image {annotation.image_id}, which is not in its list of images: "
                "add the image to the list, or remove the caption"
            )
        captions[annotation.image_id] += clean_captions([annotation.caption])
    for image_id, name in images:
        if not captions[image_id]:
            raise UserError(
                f"{path}: image {image_id} ({name!r}) has only empty captions: "
                "add a caption, or remove it from the list of images"
            )
    return [name for _, name in images], [captions[image_id] for image_id, _ in images]


def _check_images(path: Path, images: list[tuple[int, str]], captions: dict[int, list[str]]) -> None:
    if not images:
        raise UserError(f"{path} lists no images: unpack the annotation archive again")
    if len(captions) < len(images):
        raise UserError(f"{path} lists an image twice: unpack the annotation archive again")
    for _, name in images:
        if "/" in name or climbs_out(name) or not name:
            raise UserError(f"{path}: file name {name[:200]!r} points outside the image folder: correct or remove it")
