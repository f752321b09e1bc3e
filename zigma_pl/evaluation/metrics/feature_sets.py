"""Base classes of metrics on features of real and generated samples.

Axes: B batch, n samples, d features.
"""

from collections.abc import Iterable
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.evaluation.metrics.base import ScoreMetric, require_each_once
from zigma_pl.evaluation.metrics.statistics import FeatureStatistics, check_features, merge_packed

States = Literal["statistics", "features"]


class FeatureSets(ScoreMetric):
    """Named sets of features as metric states: summed statistics, or the concatenated features themselves.

    Args:
        names: names of the sets.
        dim: number of features, d.
        kept: what is stored of each set.
        options: options of `torchmetrics.Metric`.
    """

    def __init__(self, names: Iterable[str], dim: int, kept: Iterable[States], **options: Any) -> None:
        super().__init__(**options)
        self.dim = dim
        self.kept = frozenset(kept)
        for name in names:
            self.add_list(f"{name}_ids", torch.empty(0, dtype=torch.int64))
            if "statistics" in self.kept:
                self.add_state(f"{name}_statistics", FeatureStatistics(dim).packed(), dist_reduce_fx=merge_packed)
            if "features" in self.kept:
                self.add_list(f"{name}_features", torch.empty(0, dim))

    def add(self, name: str, features: Tensor, sample_ids: Tensor | None) -> None:
        """Add features (B, d) of samples with ids (B,) to a set.

        Raises:
            UserError: the features are not finite or have a wrong shape, or the number of ids differs.
        """
        check_features(features, self.dim)
        if sample_ids is not None:
            if sample_ids.shape != features.shape[:1]:
                raise UserError(
                    f"sample_ids must have shape ({len(features)},), one for each sample, got {(*sample_ids.shape,)}"
                )
            getattr(self, f"{name}_ids").append(sample_ids.detach().to(self.device, torch.int64))
        if "statistics" in self.kept:
            packed = f"{name}_statistics"
            setattr(self, packed, FeatureStatistics.unpacked(getattr(self, packed)).update(features).packed())
        if "features" in self.kept:
            getattr(self, f"{name}_features").append(features.detach().to(self.device, torch.float32))

    def statistics(self, name: str) -> FeatureStatistics:
        """Return the statistics of a set; within `compute`, of all processes."""
        return FeatureStatistics.unpacked(getattr(self, f"{name}_statistics"))

    def features(self, name: str) -> Tensor:
        """Return the features of a set, (n, d) float32, sorted by id if ids are given."""
        features, ids = self.joined(f"{name}_features"), self.joined(f"{name}_ids")
        if not len(ids):
            return features
        if len(ids) != len(features):
            raise UserError(
                f"got {len(ids)} sample_ids for {len(features)} {name} samples: give them in every call, or in none"
            )
        return features[ids.argsort()]


class Extractor(Protocol):
    """Computes features of images or clips, such as `zigma_pl.evaluation.metrics.extractors.FeatureExtractor`.

    dim: number of features.
    """

    dim: int

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return features (B, dim)."""

    def to(self, device: torch.device, /) -> Any:
        """Move to a device."""


class GivenFeatures:
    """Replaces the extractor if `update` gets features (B, d) instead of images."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return the input."""
        return images

    def to(self, device: torch.device, /) -> "GivenFeatures":
        """Do nothing, as there are no weights."""
        return self


class FeatureMetric(FeatureSets):
    """A distance between the features of real and generated samples.

    The value does not depend on the batch size or the number of processes; without `sample_ids`, the choice of subsets
    does.

    Args:
        extractor: computes the features. It is moved to the metric's device, and is not part of its `state_dict`.
        reset_real: whether `reset` also removes the real samples.
        options: options of `torchmetrics.Metric`.
    """

    keeps: ClassVar[States]
    is_differentiable = False
    higher_is_better = False

    def __init__(self, extractor: Extractor, *, reset_real: bool = True, **options: Any) -> None:
        super().__init__(("real", "fake"), extractor.dim, (self.keeps,), **options)
        self.extractor = extractor
        self.reset_real = reset_real

    def update(self, images: Tensor, real: bool, sample_ids: Tensor | None = None) -> None:
        """Add a batch, which may be empty.

        Args:
            images: input of the extractor, such as (B, 3, height, width) uint8.
            real: whether the samples are real or generated.
            sample_ids: (B,) int64, unique among the real or generated samples of all processes. If given, duplicate
                samples raise an error, and subsets do not depend on the number of processes.

        Raises:
            UserError: the features are not finite, or the extractor raises an error.
        """
        self.extractor.to(self.device)
        features = self.extractor(images) if len(images) else torch.empty(0, self.dim)
        self.add("real" if real else "fake", features, sample_ids)

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Add a batch like `update`; returns None, as the distance is not defined for a single batch."""
        self.update(*args, **kwargs)

    def reset(self) -> None:
        """Remove the generated samples, and the real ones unless `reset_real` is False."""
        names = [] if self.reset_real else [name for name in self._defaults if name.startswith("real_")]
        states = {name: getattr(self, name) for name in names}
        kept = {name: list(state) if isinstance(state, list) else state for name, state in states.items()}
        super().reset()
        for name, state in kept.items():
            setattr(self, name, state)

    def check_ids(self) -> None:
        """Raise a UserError if a sample occurs twice; within `compute`, over all processes."""
        for name in ("real_ids", "fake_ids"):
            require_each_once(self.joined(name))
