"""Feature extractors by name. `lite` needs no download; the others need weights, see `python -m zigma_pl weights`."""

from pathlib import Path

from zigma_pl.core.errors import UserError
from zigma_pl.evaluation.metrics.extractors.base import FeatureExtractor
from zigma_pl.evaluation.metrics.extractors.clip import CLIPImage
from zigma_pl.evaluation.metrics.extractors.dinov2 import Dinov2
from zigma_pl.evaluation.metrics.extractors.i3d import I3D
from zigma_pl.evaluation.metrics.extractors.inception import Inception, SpatialInception
from zigma_pl.evaluation.metrics.extractors.listed import ListedExtractor
from zigma_pl.evaluation.metrics.extractors.lite import Lite

EXTRACTORS: dict[str, type[ListedExtractor]] = {
    extractor.name: extractor for extractor in (Inception, SpatialInception, Dinov2, CLIPImage, I3D, Lite)
}

__all__ = ["EXTRACTORS", "FeatureExtractor", "build_extractor"]


def build_extractor(name: str, weights: str | Path | None = None) -> ListedExtractor:
    """Build a feature extractor and load its weights.

    Args:
        name: inception, inception_spatial, dinov2, clip_image, i3d or lite.
        weights: see `ListedExtractor`.

    Raises:
        UserError: the name is unknown, or the weights are missing or invalid.
    """
    if name not in EXTRACTORS:
        raise UserError(f"unknown feature extractor '{name}': choose one of {', '.join(EXTRACTORS)}")
    return EXTRACTORS[name](weights)
