"""Resizing exactly like Pillow, with which most published scores were computed."""

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Kernel = Literal["bilinear", "bicubic"]

_ONE = 1 << 22  # Pillow's weights are multiples of 1 / 2^22
_PICTURES_PER_PASS = 16  # bounds the memory of float64 copies


def resize_like_pillow(pictures: Tensor, height: int, width: int, kernel: Kernel) -> Tensor:
    """Resize (B, channels, old height, old width) uint8 to integers in 0 to 255, returned as float32.

    Pillow resizes rows first, then columns, in fixed-point arithmetic, and rounds after each pass. When downscaling it
    widens the kernel (antialiasing). All sums here are of integers below 2^53 in float64, so the result equals Pillow's
    bit for bit on every device.
    """
    parts = []
    for part in pictures.split(_PICTURES_PER_PASS):
        resized = part.double()
        if width != part.shape[-1]:
            resized = _rounded(resized @ _weights(part.shape[-1], width, kernel).to(part.device).T)
        if height != part.shape[-2]:
            resized = _rounded(_weights(part.shape[-2], height, kernel).to(part.device) @ resized)
        parts.append(resized.float())
    return torch.cat(parts)


@lru_cache(maxsize=16)
def _weights(old_size: int, new_size: int, kernel: Kernel) -> Tensor:
    """Return the weights of old pixels in new ones, (new_size, old_size) float64, in units of 1 / 2^22."""
    scale = old_size / new_size
    stretch = max(1.0, scale)
    centres = (torch.arange(new_size, dtype=torch.float64)[:, None] + 0.5) * scale
    offsets = (torch.arange(old_size, dtype=torch.float64) + 0.5 - centres).abs() / stretch
    weights = _triangle(offsets) if kernel == "bilinear" else _cubic(offsets)
    weights = weights / weights.sum(dim=1, keepdim=True) * _ONE
    return weights.sign() * (weights.abs() + 0.5).floor()


def _triangle(x: Tensor) -> Tensor:
    return (1 - x).clamp(min=0)


def _cubic(x: Tensor) -> Tensor:
    """Return Keys' cubic convolution kernel with a = -1/2 (doi 10.1109/TASSP.1981.1163711) for distances >= 0."""
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _rounded(sums: Tensor) -> Tensor:
    return ((sums + _ONE / 2) / _ONE).floor().clamp(0, 255)


def normalise(pictures: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return (pictures / 255 - mean) / std, per channel."""
    means, stds = (torch.tensor(values, device=pictures.device).view(-1, 1, 1) for values in (mean, std))
    return (pictures / 255 - means) / stds
