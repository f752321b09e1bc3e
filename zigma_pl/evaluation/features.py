"""Features of many pictures or clips, extracted by all processes together.

Axes: n samples, d features, F frames.
"""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from zigma_pl.metrics.extractors import FeatureExtractor
from zigma_pl.metrics.gather import check_sample_ids, gather_features
from zigma_pl.metrics.statistics import FeatureStatistics

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


def extract(
    extractor: FeatureExtractor,
    chunks: Iterable[Pictures],
    num_samples: int,
    *,
    of_frames: bool,
    keep: bool,
    shown_as: str | None = None,
) -> FeatureSet:
    """Extract the features of this process's chunks, and join them with those of the others.

    Args:
        extractor: already on its device.
        chunks: this process's share.
        num_samples: pictures, or clips, over all processes.
        of_frames: take the frames of clips as pictures.
        keep: return the features too.
        shown_as: what a progress bar of this process's share is called; None for no bar.

    Raises:
        UserError: a sample is there twice, or the number is another.
    """
    statistics = FeatureStatistics(extractor.dim)
    kept, ids, num_frames = [torch.empty(0, extractor.dim)], [torch.empty(0, dtype=torch.int64)], 1
    for chunk in tqdm(chunks, desc=shown_as, unit="chunks", disable=shown_as is None):
        pictures, sample_ids = chunk.pictures, chunk.sample_ids
        if of_frames:
            num_frames = pictures.shape[1]
            sample_ids = (sample_ids[:, None] * num_frames + torch.arange(num_frames)).flatten()
            pictures = pictures.flatten(0, 1)
        ids.append(sample_ids)
        for part in pictures.split(PICTURES_PER_CALL):
            features = extractor(part).float().cpu()
            statistics.update(features)
            kept += [features] if keep else []
    all_ids, num_expected = torch.cat(ids), num_samples * num_frames
    if keep:
        return FeatureSet(statistics.all_reduce(), gather_features(all_ids, torch.cat(kept), num_expected))
    check_sample_ids(all_ids, num_expected)
    return FeatureSet(statistics.all_reduce(), None)
