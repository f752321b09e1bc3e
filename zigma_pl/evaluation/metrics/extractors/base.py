"""What a feature extractor promises.

Axes: B batch, F frames.
"""

import inspect
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from zigma_pl.core.class_paths import Configurable, recorded
from zigma_pl.core.errors import UserError
from zigma_pl.core.files import sha256
from zigma_pl.encoders.weights import hash_of_weights


class FeatureExtractor(Configurable, ABC):
    """Turns pictures or clips into features, always in float32, usually by a frozen network.

    A subclass gives `dim`, `features` and, where it has a network, `load`. Its constructor should only keep options:
    `fit` calls it too, and files are read in `load`, when the network is first used.

    Attributes:
        dim: number of features.
        takes: pictures or clips.
        least_frames: that a clip must have.
        resize: what is done to the pictures before the network, in words, for the record.
        comparable: whether scores on these features can be compared with published ones.
        device: where the network is.
    """

    dim: int
    takes: ClassVar[Literal["images", "clips"]] = "images"
    least_frames: ClassVar[int] = 1
    resize: ClassVar[str] = "none"
    comparable: bool = False
    device: torch.device = torch.device("cpu")

    @cached_property
    def network(self) -> nn.Module:
        """What `load` returns, frozen, in evaluation mode and in float32."""
        network = self.load().eval().float()
        for parameter in network.parameters():  # a script has no requires_grad_ of its own
            parameter.requires_grad_(False)
        return network

    def load(self) -> nn.Module:
        """Return the network with its weights, on the CPU; an extractor without a network leaves this out.

        Raises:
            UserError: the weights are missing or broken.
        """
        return nn.Identity()

    @abstractmethod
    def features(self, pictures: Tensor) -> Tensor:
        """Return the features (B, dim) of pictures as in `__call__`, in colour and on the extractor's device."""

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
            raise UserError(self.wrong_features(f"{features.dtype} {tuple(features.shape)}"))
        return features

    def wrong_features(self, found: str) -> str:
        """Return what is wrong where the features are not (B, dim) float32."""
        return f"{type(self).__name__}.features: must return {torch.float32} (B, {self.dim}), got {found}"

    def fingerprint(self) -> dict[str, Any]:
        """Return plain values that tell this extractor from others; equal ones give equal features.

        They are the class, its options, the weights, and the file that the class is in: features of real pictures are
        kept, and those of another version of the class must not be compared with new ones.

        Raises:
            UserError: the class cannot be imported, or an option is no plain value.
        """
        return {
            **recorded(self, "feature extractor"),
            "weights_sha256": hash_of_weights(self.network),
            "source_sha256": sha256(Path(inspect.getfile(type(self)))),
            "comparable": self.comparable,
            "resize": self.resize,
        }

    def to(self, device: torch.device | str) -> Self:
        """Move the network, and from now on also what it is given."""
        self.device = torch.device(device)
        self.network.to(self.device)
        return self

    def _check(self, pictures: Tensor) -> None:
        name = type(self).__name__
        num_axes = 5 if self.takes == "clips" else 4
        if pictures.dtype != torch.uint8 or pictures.ndim != num_axes or pictures.shape[-3] not in (1, 3):
            frames = "frames, " if self.takes == "clips" else ""
            raise UserError(
                f"{name} takes {self.takes} of uint8 in 0 to 255, (batch, {frames}3 or 1, height, width), "
                f"got {pictures.dtype} {tuple(pictures.shape)}"
            )
        if self.takes == "clips" and pictures.shape[1] < self.least_frames:
            raise UserError(f"{name} takes clips of at least {self.least_frames} frames, got {pictures.shape[1]}")
        if len(pictures) > 1 and pictures.max() <= 1:  # a single picture may be black
            raise UserError(
                f"{name} got pictures without a value above 1: they are all black, or were in [0, 1] when they "
                "were made uint8; multiply by 255 first"
            )
