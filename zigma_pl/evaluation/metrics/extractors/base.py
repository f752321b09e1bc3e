"""Base class of feature extractors.

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
    """Computes float32 features of images or clips, usually with a frozen network.

    Subclasses define `dim` and `features` and, if they have a network, `load`. The constructor should only store
    options, as `fit` calls it too; files should be read in `load`, which is called when the network is first used.

    Attributes:
        dim: number of features.
        takes: "images" or "clips".
        least_frames: minimum number of frames of a clip.
        resize: description of the preprocessing, for the record.
        comparable: whether scores on these features can be compared with published ones.
        device: device of the network.
    """

    dim: int
    takes: ClassVar[Literal["images", "clips"]] = "images"
    least_frames: ClassVar[int] = 1
    resize: ClassVar[str] = "none"
    comparable: bool = False
    device: torch.device = torch.device("cpu")

    @cached_property
    def network(self) -> nn.Module:
        """The network returned by `load`, frozen, in evaluation mode and in float32."""
        network = self.load().eval().float()
        for parameter in network.parameters():  # TorchScript modules have no requires_grad_ method
            parameter.requires_grad_(False)
        return network

    def load(self) -> nn.Module:
        """Return the network with its weights, on the CPU; not needed for extractors without a network.

        Raises:
            UserError: the weights are missing or invalid.
        """
        return nn.Identity()

    @abstractmethod
    def features(self, pictures: Tensor) -> Tensor:
        """Return the features (B, dim) of images as in `__call__`, with three channels, on the extractor's device."""

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """Return features, (B, dim) float32 on the extractor's device.

        Args:
            pictures: (B, 3 or 1, height, width) uint8, for clips (B, F, 3 or 1, height, width); a single channel is
                repeated.

        Raises:
            UserError: wrong dtype or shape, or values that were in [0, 1] before the conversion to uint8.
        """
        self._check(pictures)
        pictures = pictures.to(self.device)
        colour = pictures.expand(*pictures.shape[:-3], 3, *pictures.shape[-2:])
        # With mixed precision, the trainer calls its steps under autocast, which would round the features.
        with torch.autocast(self.device.type, enabled=False):
            features = self.features(colour)
        if features.shape != (len(pictures), self.dim) or features.dtype != torch.float32:
            raise UserError(self.wrong_features(f"{features.dtype} {tuple(features.shape)}"))
        return features

    def wrong_features(self, found: str) -> str:
        """Return the error message for features that are not (B, dim) float32."""
        return f"{type(self).__name__}.features must return {torch.float32} (B, {self.dim}), got {found}"

    def fingerprint(self) -> dict[str, Any]:
        """Return plain values that identify this extractor; equal values mean equal features.

        Contains the class, its options, and hashes of the weights and of the class's source file: features of real
        images are stored, and must not be compared with those of another version of the class.

        Raises:
            UserError: the class cannot be imported, or an option is not a plain value.
        """
        return {
            **recorded(self, "feature extractor"),
            "weights_sha256": hash_of_weights(self.network),
            "source_sha256": sha256(Path(inspect.getfile(type(self)))),
            "comparable": self.comparable,
            "resize": self.resize,
        }

    def to(self, device: torch.device | str) -> Self:
        """Move the network, and move inputs to the same device from now on."""
        self.device = torch.device(device)
        self.network.to(self.device)
        return self

    def _check(self, pictures: Tensor) -> None:
        name = type(self).__name__
        num_axes = 5 if self.takes == "clips" else 4
        if pictures.dtype != torch.uint8 or pictures.ndim != num_axes or pictures.shape[-3] not in (1, 3):
            frames = "frames, " if self.takes == "clips" else ""
            raise UserError(
                f"{name} needs {self.takes} as uint8 in 0 to 255, (batch, {frames}3 or 1, height, width), "
                f"got {pictures.dtype} {tuple(pictures.shape)}"
            )
        if self.takes == "clips" and pictures.shape[1] < self.least_frames:
            raise UserError(f"{name} needs clips of at least {self.least_frames} frames, got {pictures.shape[1]}")
        if len(pictures) > 1 and pictures.max() <= 1:  # a single image may be black
            raise UserError(
                f"{name} got images without any value above 1, so they are all black, or were in [0, 1] before the "
                "conversion to uint8: multiply them by 255 first"
            )
