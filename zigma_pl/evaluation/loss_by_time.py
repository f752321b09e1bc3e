"""The fixed validation loss, overall and by time."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.evaluation.metrics.base import ScoreMetric

NUM_BINS = 10


class LossByTime(NamedTuple):
    """Mean loss, mean in each of `NUM_BINS` equal parts of [0, 1] (None without samples), and number of samples."""

    value: float
    by_time: list[float | None]
    num_samples: int


class MeanByTime(ScoreMetric):
    """Mean losses by time as a `torchmetrics.Metric`, accumulated in float64.

    Every sample counts once, so the result does not depend on the batch size or the number of processes.

    Args:
        options: options of `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = False
    sums: Tensor
    counts: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("sums", torch.zeros(NUM_BINS, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(NUM_BINS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, losses: Tensor, times: Tensor) -> None:
        """Add losses (B,) at times (B,) in [0, 1]; B may be 0.

        Raises:
            UserError: the shapes differ, or a time is outside [0, 1].
        """
        if losses.ndim != 1 or losses.shape != times.shape:
            raise UserError(f"losses and times must both have shape (B,), got {(*losses.shape,)}, {(*times.shape,)}")
        times = times.to(self.device)
        if not ((times >= 0) & (times <= 1)).all():
            raise UserError(f"times must be in [0, 1], got {times.min():.3g} to {times.max():.3g}")
        bins = (times * NUM_BINS).long().clamp(0, NUM_BINS - 1)
        self.sums = self.sums.index_add(0, bins, losses.detach().to(self.device).double())
        self.counts = self.counts.index_add(0, bins, torch.ones_like(bins))

    def compute(self) -> LossByTime:
        """Return the means over all processes; NaN if there are no samples."""
        sums, counts = self.sums.tolist(), self.counts.tolist()
        by_time = [total / count if count else None for total, count in zip(sums, counts, strict=True)]
        return LossByTime(sum(sums) / sum(counts) if sum(counts) else math.nan, by_time, sum(counts))


def bin_name(index: int) -> str:
    """Return the time range of a bin as text, such as "0.1_to_0.2"."""
    return f"{index / NUM_BINS:.1f}_to_{(index + 1) / NUM_BINS:.1f}"
