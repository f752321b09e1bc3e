"""The fixed validation loss, as a whole and by time."""

import math
from typing import NamedTuple

import numpy as np
from torch import Tensor

from zigma_pl.metrics.gather import gather_objects

NUM_BINS = 10


class LossByTime(NamedTuple):
    """A mean loss, the mean in each of `NUM_BINS` equal parts of [0, 1] (None where no time fell), and of how many."""

    value: float
    by_time: list[float | None]
    num_samples: int


class MeanByTime:
    """Means of losses by time, over all processes, summed in float64 on the CPU.

    Every sample counts once, so the result depends neither on the batch size nor on the number of processes.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all samples."""
        self._sums, self._counts = np.zeros(NUM_BINS), np.zeros(NUM_BINS, dtype=np.int64)

    def update(self, losses: Tensor, times: Tensor) -> None:
        """Add losses (B,) at times (B,) in [0, 1]."""
        bins = (times * NUM_BINS).long().clamp(0, NUM_BINS - 1).cpu().numpy()
        np.add.at(self._sums, bins, losses.detach().cpu().double().numpy())
        np.add.at(self._counts, bins, 1)

    def compute(self) -> LossByTime:
        """Return the means over all processes, each of which has to ask; NaN where there was no sample at all."""
        parts = gather_objects((self._sums, self._counts))
        sums, counts = (sum(part).tolist() for part in zip(*parts, strict=True))
        by_time = [total / count if count else None for total, count in zip(sums, counts, strict=True)]
        return LossByTime(sum(sums) / sum(counts) if sum(counts) else math.nan, by_time, sum(counts))


def bin_name(number: int) -> str:
    """Return the times of a bin in words, such as "0.1_to_0.2"."""
    return f"{number / NUM_BINS:.1f}_to_{(number + 1) / NUM_BINS:.1f}"
