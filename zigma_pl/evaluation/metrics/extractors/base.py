"""What a feature extractor promises.

Axes: B batch, F frames.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from zigma_pl.core.errors import UserError
from zigma_pl.core.files import sha256
from zigma_pl.encoders.weight_files import find_weights, is_published


class FeatureExtractor(ABC):
    """A frozen network that turns pictures or clips into features, always in float32.

    Args:
        weights: file with the weights, or the folder it is in; None for where `python -m zigma_pl weights` puts it.

    Attributes:
        name: as in `build_extractor`.
        weights_name: entry of the table of weights.
        takes: pictures or clips.
        least_frames: that a clip must have.
        resize: what is done to the pictures before the network, in words.
        dim: number of features.
        published: whether others report scores on these features.
        comparable: whether scores on these features can be compared with published ones: there are some, and the
            weights are theirs.

    Raises:
        UserError: the weights are missing or broken.
    """

    name: ClassVar[str]
    weights_name: ClassVar[str]
    takes: ClassVar[Literal["images", "clips"]] = "images"
    least_frames: ClassVar[int] = 1
    published: ClassVar[bool] = True
    resize: ClassVar[str]
    dim: int

    def __init__(self, weights: str | Path | None = None) -> None:
        self.path = find_weights(self.weights_name, weights)
        self.weights_sha256 = sha256(self.path)
        self.comparable = self.published and is_published(self.weights_name, self.weights_sha256)
        self.device = torch.device("cpu")
        self.network = self.load().eval().float()
        for parameter in self.network.parameters():  # a script has no requires_grad_ of its own
            parameter.requires_grad_(False)

    @abstractmethod
    def load(self) -> nn.Module:
        """Return the network with the weights in `path`."""

    @abstractmethod
    def features(self, pictures: Tensor) -> Tensor:
        """Return the features (B, dim) of pictures as in `__call__`, in colour and on the extractor's device."""

    def preprocess(self, pictures: Tensor) -> Tensor:
        """Return what the network gets for pictures in colour; the whole of the preprocessing that is not in it."""
        return pictures

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """Return features, (B, dim) float32 on the extractor's device.

        Args:
            pictures: (B, 3 or 1, height, width) uint8, of clips (B, F, 3 or 1, height, width); grey is repeated.

        Raises:
            UserError: another type or shape, or values that were scaled to [0, 1] before they became whole numbers.
        """
        self._check(pictures)
        pictures = pictures.to(self.device)
        colour = pictures.expand(*pictures.shape[:-3], 3, *pictures.shape[-2:])
        # A trainer with mixed precision calls its steps under autocast, which would round the features.
        with torch.autocast(self.device.type, enabled=False):
            features = self.features(colour)
        if features.shape != (len(pictures), self.dim) or features.dtype != torch.float32:
            raise UserError(f"{self.path} gives {features.dtype} {tuple(features.shape)}: it is no {self.name} network")
        return features

    def fingerprint(self) -> dict[str, Any]:
        """Return plain values that tell this extractor from others; equal ones give equal features."""
        return {
            "name": self.name,
            "weights": self.path.name,
            "weights_sha256": self.weights_sha256,
            "comparable": self.comparable,
            "resize": self.resize,
        }

    def to(self, device: torch.device | str) -> Self:
        """Move the network, and from now on also what it is given."""
        self.device = torch.device(device)
        self.network = self.network.to(self.device)
        return self

    def _check(self, pictures: Tensor) -> None:
        num_axes = 5 if self.takes == "clips" else 4
        if pictures.dtype != torch.uint8 or pictures.ndim != num_axes or pictures.shape[-3] not in (1, 3):
            frames = "frames, " if self.takes == "clips" else ""
            raise UserError(
                f"{self.name} takes {self.takes} of uint8 in 0 to 255, (batch, {frames}3 or 1, height, width), "
                f"got {pictures.dtype} {tuple(pictures.shape)}"
            )
        if self.takes == "clips" and pictures.shape[1] < self.least_frames:
            raise UserError(f"{self.name} takes clips of at least {self.least_frames} frames, got {pictures.shape[1]}")
        if len(pictures) > 1 and pictures.max() <= 1:  # a single picture may be black
            raise UserError(
                f"{self.name} got pictures without a value above 1: they are all black, or were in [0, 1] when they "
                "were made uint8; multiply by 255 first"
            )
