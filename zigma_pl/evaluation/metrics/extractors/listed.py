"""Base class of extractors whose weights are listed by `python -m zigma_pl weights`."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from zigma_pl.core.files import sha256
from zigma_pl.core.weight_files import find_weights, is_published
from zigma_pl.evaluation.metrics.extractors.base import FeatureExtractor


class ListedExtractor(FeatureExtractor):
    """A frozen network with listed weights, which are loaded by the constructor.

    Args:
        weights: weight file, or its folder; None for the default folder of `python -m zigma_pl weights`.

    Attributes:
        name: name in `build_extractor`.
        weights_name: name in the list of weights.
        published: whether there are published scores on these features. Scores are comparable if this is True and the
            weights are the published ones.

    Raises:
        UserError: the weights are missing or invalid.
    """

    name: ClassVar[str]
    weights_name: ClassVar[str]
    published: ClassVar[bool] = True

    def __init__(self, weights: str | Path | None = None) -> None:
        self.path = find_weights(self.weights_name, weights)
        self.weights_sha256 = sha256(self.path)
        self.comparable = self.published and is_published(self.weights_name, self.weights_sha256)
        self.to(self.device)  # loads the weights, so that invalid ones raise here

    @abstractmethod
    def load(self) -> nn.Module:
        """Return the network with the weights in `path`."""

    def preprocess(self, pictures: Tensor) -> Tensor:
        """Return the network's input for images with three channels."""
        return pictures

    def wrong_features(self, found: str) -> str:
        """Return the error message for features that are not (B, dim) float32, which means wrong weights."""
        return f"{self.path} does not contain the {self.name} network, as it returns {found}: replace the file"

    def fingerprint(self) -> dict[str, Any]:
        """Return plain values that identify this extractor; equal values mean equal features."""
        return {
            "name": self.name,
            "weights": self.path.name,
            "weights_sha256": self.weights_sha256,
            "comparable": self.comparable,
            "resize": self.resize,
        }
