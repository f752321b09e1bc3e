"""Images from tensors: 8-bit conversion, tiling, writing PNG files.

Axes: B batch, F frames (videos only), C channels, H W pixels.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zigma_pl.core.files import whole_file
from zigma_pl.core.labels import LabelStrip

MIN_SIDE_PX = 128


def to_uint8(images: Tensor) -> Tensor:
    """Convert images (B, C, H, W), or videos (B, F, C, H, W), in [0, 1] to (B, [F,] H, W, C) uint8, with clamping."""
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8).movedim(-3, -1).cpu()


def to_pil(image: Tensor) -> Image.Image:
    """Convert (H, W, C) uint8 with one or three channels to a PIL image."""
    array = image.numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def tile(
    images: Sequence[Image.Image],
    num_columns: int,
    labels: Sequence[str] | None = None,
    min_side_px: int = MIN_SIDE_PX,
    padding_px: int = 2,
) -> Image.Image:
    """Tile images of equal size row by row, each with its label below it.

    Args:
        images: at least one.
        num_columns: images per row.
        labels: text for each image, wrapped and shortened to its width; None for no labels.
        min_side_px: images with a shorter side are enlarged by the smallest sufficient integer, without smoothing.
        padding_px: space around the images.
    """
    width, height = images[0].size
    factor = max(1, math.ceil(min_side_px / min(width, height)))
    width, height = width * factor, height * factor
    strip = LabelStrip(labels or (), width)
    cell_width, cell_height = width + padding_px, height + strip.height_px + padding_px
    num_rows = math.ceil(len(images) / num_columns)
    canvas_size = (num_columns * cell_width + padding_px, num_rows * cell_height + padding_px)
    canvas = Image.new("RGB", canvas_size, "white")
    for index, image in enumerate(images):
        row, column = divmod(index, num_columns)
        left, top = padding_px + column * cell_width, padding_px + row * cell_height
        canvas.paste(image.convert("RGB").resize((width, height), Image.Resampling.NEAREST), (left, top))
        strip.draw(index, canvas, left, top + height)
    return canvas


def save_png(image: Image.Image, path: Path) -> None:
    """Write an image atomically."""
    with whole_file(path) as temporary:
        image.save(temporary, format="PNG")


def as_chw_array(image: Image.Image) -> np.ndarray:
    """Convert an image to (3, H, W) uint8, the layout of TensorBoard's add_image."""
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
