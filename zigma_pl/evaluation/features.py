"""Features of many pictures or clips, extracted by all processes together.

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


class Pictures(Protocol):
    """Pictures, or clips, and their ids."""

    @property
    def pictures(self) -> Tensor:
        """(n, 3 or 1, height, width) uint8, of clips (n, F, 3, height, width)."""

    @property
    def sample_ids(self) -> Tensor:
        """(n,) int64."""


class FeatureSet(NamedTuple):
    """Statistics of the features, and the features (n, d) themselves in order of ids where they were asked for."""

    statistics: FeatureStatistics
    features: Tensor | None


class ExtractedFeatures(FeatureSets):
    """One set of features, gathered from all processes as a `torchmetrics.Metric`.

    Args:
        dim: d.
        num_samples: expected over all processes.
        keep: whether the features themselves are kept beside their statistics.
    """

    all_statistics: Tensor

    def __init__(self, dim: int, num_samples: int, *, keep: bool) -> None:
        super().__init__(("all",), dim, ("statistics", "features") if keep else ("statistics",))
        self.num_samples = num_samples

    def update(self, features: Tensor, sample_ids: Tensor) -> None:
        """Add features, (B, d), of samples with the given ids, (B,)."""
        self.add("all", features, sample_ids)

    def compute(self) -> FeatureSet:
        """Return statistics and features on the CPU.

        Raises:
            UserError: a sample is there twice, or the number is another.
        """
        require_each_once(self.joined("all_ids"), self.num_samples)
        features = self.features("all").cpu() if "features" in self.kept else None
        return FeatureSet(FeatureStatistics.unpacked(self.all_statistics.cpu()), features)


def extract(
    extractor: FeatureExtractor,
    chunks: Iterable[Pictures],
    num_samples: int,
    *,
    num_frames: int | None,
    keep: bool,
    shown_as: str | None = None,
) -> FeatureSet:
    """Extract the features of this process's chunks, and join them with those of the others.

    Args:
        extractor: already on its device.
        chunks: this process's share.
        num_samples: pictures, or clips, over all processes.
        num_frames: of each clip, which are taken as pictures; None to take pictures or clips as they are.
        keep: return the features too.
        shown_as: what a progress bar of this process's share is called; None for no bar.

    Raises:
        UserError: a sample is there twice, or the number is another.
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
