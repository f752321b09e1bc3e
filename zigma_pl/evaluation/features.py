"""Feature extraction from many images or clips, on all processes.

Axes: B batch, n samples, d features, F frames.
"""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from zigma_pl.evaluation.metrics.base import require_each_once
from zigma_pl.evaluation.metrics.extractors import FeatureExtractor
from zigma_pl.evaluation.metrics.feature_sets import FeatureSets
from zigma_pl.evaluation.metrics.statistics import FeatureStatistics

PICTURES_PER_CALL = 32


class PictureChunk(Protocol):
    """Images or clips, and their ids."""

    @property
    def pictures(self) -> Tensor:
        """(n, 3 or 1, height, width) uint8, for clips (n, F, 3, height, width)."""

    @property
    def sample_ids(self) -> Tensor:
        """(n,) int64."""


class FeatureSet(NamedTuple):
    """Statistics of features and, if requested, the features (n, d) themselves, sorted by id."""

    statistics: FeatureStatistics
    features: Tensor | None


class ExtractedFeatures(FeatureSets):
    """One set of features, gathered from all processes as a `torchmetrics.Metric`.

    Args:
        dim: number of features, d.
        num_samples: expected number of samples over all processes.
        keep: store the features themselves in addition to their statistics.
    """

    all_statistics: Tensor

    def __init__(self, dim: int, num_samples: int, *, keep: bool) -> None:
        super().__init__(("all",), dim, ("statistics", "features") if keep else ("statistics",))
        self.num_samples = num_samples

    def update(self, features: Tensor, sample_ids: Tensor) -> None:
        """Add features (B, d) of samples with ids (B,)."""
        self.add("all", features, sample_ids)

    def compute(self) -> FeatureSet:
        """Return statistics and features on the CPU.

        Raises:
            UserError: a sample occurs twice, or the number of samples is not the expected one.
        """
        require_each_once(self.joined("all_ids"), self.num_samples)
        features = self.features("all").cpu() if "features" in self.kept else None
        return FeatureSet(FeatureStatistics.unpacked(self.all_statistics.cpu()), features)


def extract(
    extractor: FeatureExtractor,
    chunks: Iterable[PictureChunk],
    num_samples: int,
    *,
    num_frames: int | None,
    keep: bool,
    shown_as: str | None = None,
) -> FeatureSet:
    """Extract the features of this process's chunks, and gather those of all processes.

    Args:
        extractor: feature extractor, already on its device.
        chunks: chunks of this process.
        num_samples: number of images or clips over all processes.
        num_frames: frames per clip, to extract features of single frames; None for features of images or whole clips.
        keep: return the features themselves too.
        shown_as: label of the progress bar; None for no bar.

    Raises:
        UserError: a sample occurs twice, or the number of samples is not `num_samples`.
    """
    gathered = ExtractedFeatures(extractor.dim, num_samples * (num_frames or 1), keep=keep).to(extractor.device)
    for chunk in tqdm(chunks, desc=shown_as, unit="chunks", disable=shown_as is None):
        pictures, sample_ids = chunk.pictures, chunk.sample_ids
        if num_frames is not None:
            sample_ids = (sample_ids[:, None] * num_frames + torch.arange(num_frames)).flatten()
            pictures = pictures.flatten(0, 1)
        for part, ids in zip(pictures.split(PICTURES_PER_CALL), sample_ids.split(PICTURES_PER_CALL), strict=True):
            if len(part):
                gathered.update(extractor(part), ids)
    return gathered.compute()
