"""From files to pixels: items of a data set, decoding, and resizing without torchvision."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from zigma_pl.core.errors import UserError
from zigma_pl.core.files import open_regular

CROP = "shorter side resized (bicubic), centre square"  # describes `resize_and_crop` in the manifests of caches
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # Pillow reads more, some by running other programs
MAX_PIXELS = 2**26  # 8192 x 8192
# Up to this aspect ratio the whole image is resized before cropping. Resizing only a part rounds a few values
# differently, so existing caches would no longer match for images of usual shapes.
MAX_RESIZED_RATIO = 4


class ImageItem(NamedTuple):
    """One item of a data set, before cropping and before a caption is chosen.

    image: the decoded image, mode "RGB" or "L".
    class_id: class in [0, num_classes), or None.
    captions: all captions of the image, at least one, or None if the data set has none.
    """

    image: Image.Image
    class_id: int | None = None
    captions: list[str] | None = None


class PixelItem(NamedTuple):
    """A cropped image or clip. pixels: (3 or 1, height, width) uint8, for clips (F, 3, height, width)."""

    pixels: Tensor
    class_id: int | None = None
    captions: list[str] | None = None


class ImageDataset(Dataset[ImageItem], ABC):
    """A split of an image data set, as returned by `ImageDataModule.load_split`."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> ImageItem: ...

    def item_names(self) -> Iterable[str]:
        """Return the name of each item in order, the same on every machine: relative paths if items are files."""
        return map(str, range(len(self)))


class PixelDataset(Dataset[PixelItem], ABC):
    """A split of cropped images or clips, without random augmentation."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> PixelItem: ...

    def item_names(self) -> Iterable[str]:
        """Return the name of each item, see `ImageDataset.item_names`."""
        return map(str, range(len(self)))


class CroppedImages(PixelDataset):
    """The images of an `ImageDataset`, resized and cropped to squares of `image_size_px`."""

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
        """Return the names of the images."""
        return self.images.item_names()


def decode_image(path: Path, *, upright: bool = False) -> Image.Image:
    """Read and fully decode an image file as RGB; transparent images are composited onto white.

    Args:
        path: the file. Its content must be one of `PICTURE_FORMATS`, whatever its suffix.
        upright: apply the orientation in the EXIF data. Published data sets ignore it.

    Raises:
        UserError: the file is missing, not a regular file, damaged or of another format, or has more than `MAX_PIXELS`
            pixels or more than 8 bits per channel.
    """
    try:
        with open_regular(path) as file, Image.open(file, formats=PICTURE_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} is more than {MAX_PIXELS:,} pixels")
            image.load()
            return to_rgb(ImageOps.exif_transpose(image) if upright else image)
    except Exception as error:  # Pillow's decoders raise many kinds of errors for damaged files
        raise UserError(
            f"cannot decode the image {path} ({_first_line(error)}): replace it with an intact "
            f"{', '.join(PICTURE_FORMATS)} file, or remove it from the data set"
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the image in mode RGB; transparent parts become white."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"more than 8 bits per channel, mode {image.mode}")  # Pillow would clip it to white
    if not image.has_transparency_data:
        return image.convert("RGB")
    picture = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def _first_line(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "unsupported format"
    return (str(error).splitlines() or [type(error).__name__])[0]


def resize_and_crop(image: Image.Image, size_px: int) -> Image.Image:
    """Resize the shorter side to `size_px` (bicubic, antialiased when downscaling), then crop the centre square.

    If the aspect ratio exceeds `MAX_RESIZED_RATIO`, only the part inside the crop is resized, to bound memory.
    """
    width, height = image.size
    shorter = min(width, height)
    if shorter == size_px:
        return _centre_square(image, size_px)
    wide, high = round(width * size_px / shorter), round(height * size_px / shorter)
    if max(width, height) <= MAX_RESIZED_RATIO * shorter:
        return _centre_square(image.resize((wide, high), Image.Resampling.BICUBIC), size_px)
    left, top = (wide - size_px) // 2, (high - size_px) // 2
    across, down = width / wide, height / high  # source pixels per result pixel
    box = (left * across, top * down, (left + size_px) * across, (top + size_px) * down)
    return image.resize((size_px, size_px), Image.Resampling.BICUBIC, box=box)


def _centre_square(image: Image.Image, size_px: int) -> Image.Image:
    width, height = image.size
    if width == height:
        return image
    left, top = (width - size_px) // 2, (height - size_px) // 2
    return image.crop((left, top, left + size_px, top + size_px))


def to_uint8_tensor(image: Image.Image) -> Tensor:
    """Return (1 or 3, height, width) uint8."""
    pixels = np.array(image)
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())
