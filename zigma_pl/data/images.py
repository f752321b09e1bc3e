"""From a file to pixels: what a data set hands out, decoding, and resizing without torchvision."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from zigma_pl.errors import UserError

CROP = "shorter side resized (bicubic), centre square"  # what `resize_and_crop` does, as prepared sets record it


class ImageItem(NamedTuple):
    """One entry of a data set, before cropping and before a caption is drawn.

    image: the decoded picture, mode "RGB" or "L".
    class_id: class in [0, num_classes), or None.
    captions: every caption of the picture, at least one, or None where the data set has none.
    """

    image: Image.Image
    class_id: int | None = None
    captions: list[str] | None = None


class PixelItem(NamedTuple):
    """An `ImageItem` or a clip cut to size: pixels (3 or 1, height, width), of clips (F, 3, height, width), uint8."""

    pixels: Tensor
    class_id: int | None = None
    captions: list[str] | None = None


class ImageDataset(Dataset[ImageItem], ABC):
    """A split of an image data set; what `ImageDataModule.load_split` returns."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> ImageItem: ...

    def item_names(self) -> Iterable[str]:
        """Return a name of each item, in order and alike on every machine: relative paths where items are files."""
        return map(str, range(len(self)))


class PixelDataset(Dataset[PixelItem], ABC):
    """A split with everything cut to size; nothing in it is drawn at random."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> PixelItem: ...

    def item_names(self) -> Iterable[str]:
        """Return a name of each item, see `ImageDataset.item_names`."""
        return map(str, range(len(self)))


class CroppedImages(PixelDataset):
    """The pictures of an `ImageDataset`, resized and cut to squares of `image_size_px`."""

    def __init__(self, images: ImageDataset, image_size_px: int) -> None:
        self.images = images
        self.image_size_px = image_size_px

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> PixelItem:
        item = self.images[index]
        image = resize_and_crop(item.image, self.image_size_px)
        return PixelItem(to_uint8_tensor(image), item.class_id, item.captions)

    def item_names(self) -> Iterable[str]:
        """Return the names of the pictures."""
        return self.images.item_names()


def decode_image(file: Path | BinaryIO, *, upright: bool = False, name: str | None = None) -> Image.Image:
    """Read and fully decode an image file as RGB; a transparent one is put on white.

    Args:
        file: the file.
        upright: turn the picture as the orientation in its EXIF data says; data sets of stored pixels do without.
        name: what to call it in errors, where it is no path.

    Raises:
        UserError: the file is missing, truncated or no image, or has more than 8 bits a channel.
    """
    try:
        with Image.open(file) as image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image) if upright else image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"cannot decode the image {name or file} ({_first_line(error)}): replace it by a good copy, "
            "or take it out of the data set"
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the image in mode RGB, on white where it is transparent."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"more than 8 bits a channel, mode {image.mode}")  # Pillow would clip it to white
    if not image.has_transparency_data:
        return image.convert("RGB")
    picture = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def resize_and_crop(image: Image.Image, size_px: int) -> Image.Image:
    """Bring the shorter side to `size_px` (bicubic, antialiased when shrinking), then cut the centre square out."""
    width, height = image.size
    shorter = min(width, height)
    if shorter != size_px:
        width, height = round(width * size_px / shorter), round(height * size_px / shorter)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    if width == height:
        return image
    left, top = (width - size_px) // 2, (height - size_px) // 2
    return image.crop((left, top, left + size_px, top + size_px))


def to_uint8_tensor(image: Image.Image) -> Tensor:
    """Return (1 or 3, height, width) uint8."""
    pixels = np.array(image)
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())
