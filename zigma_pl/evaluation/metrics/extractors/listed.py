"""Extractors whose weights are an entry of the table of weights, `python -m zigma_pl weights`."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from zigma_pl.core.files import sha256
from zigma_pl.core.weight_files import find_weights, is_published
from zigma_pl.evaluation.metrics.extractors.base import FeatureExtractor


class ListedExtractor(FeatureExtractor):
    """A frozen network of this package's list; its weights are loaded at once.

    Args:
        weights: file with the weights, or the folder it is in; None for where `python -m zigma_pl weights` puts it.

    Attributes:
        name: as in `build_extractor`.
        weights_name: entry of the table of weights.
        published: whether others report scores on these features. Scores are comparable where they do, and the weights
            are theirs.

    Raises:
        UserError: the weights are missing or broken.
    """

    name: ClassVar[str]
    weights_name: ClassVar[str]
    published: ClassVar[bool] = True

    def __init__(self, weights: str | Path | None = None) -> None:
        self.path = find_weights(self.weights_name, weights)
        self.weights_sha256 = sha256(self.path)
        self.comparable = self.published and is_published(self.weights_name, self.weights_sha256)
        self.to(self.device)  # loads the weights, so that a fault of theirs is found here

    @abstractmethod
    def load(self) -> nn.Module:
        """Return the network with the weights in `path`."""

    def preprocess(self, pictures: Tensor) -> Tensor:
        """Return what the network gets for pictures in colour; the whole of the preprocessing that is not in it."""
        return pictures

    def wrong_features(self, found: str) -> str:
        """Return what is wrong where the features are not (B, dim) float32: the weights are of another network."""
        return f"{self.path} is no {self.name} network: it gives {found}"

    def fingerprint(self) -> dict[str, Any]:
        """Return plain values that tell this extractor from others; equal ones give equal features."""
        return {
            "name": self.name,
            "weights": self.path.name,
            "weights_sha256": self.weights_sha256,
            "comparable": self.comparable,
            "resize": self.resize,
        }
