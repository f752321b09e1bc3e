"""Which sample comes when, for data in shards: as in `order`, but each rank reads one shard after another."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate

import torch

from zigma_pl.data.order import EvaluationOrder, SampleKey, TrainingOrder, _start_from_the_first_step
from zigma_pl.randomness import sample_generator


class ShardedTrainingOrder(TrainingOrder):
    """Endless shuffled batches, a function of (seed, step, world size) alone, that stay in few shards at a time.

    The training stream has positions 0, 1, 2, ...; epoch e is positions e * num_images to (e + 1) * num_images - 1. In
    each epoch the shards come in a fresh order, and the samples of a shard too. The stream does not depend on the
    world size: each epoch is cut into one contiguous piece for each rank, and a rank takes its pieces one after the
    other, in batches that run on into the next epoch. Pieces differ by one sample at most, and so do the sums of all
    pieces that two ranks have had; nothing is dropped or padded. There is no `len`: it never ends.

    Args:
        shard_sizes: samples in each shard; samples are numbered through the shards in this order.
        batch_size: samples per step of one rank.
        seed: seed of the permutations.
        rank: this process, in [0, world_size).
        world_size: number of processes.
        steps_done: called whenever iteration begins; returns how many batches training has already had.
    """

    def __init__(
        self,
        shard_sizes: Sequence[int],
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        steps_done: Callable[[], int] = _start_from_the_first_step,
    ) -> None:
        super().__init__(
            sum(shard_sizes), batch_size, seed=seed, rank=rank, world_size=world_size, steps_done=steps_done
        )
        self.shard_sizes = list(shard_sizes)
        self._first_indices = [0, *accumulate(self.shard_sizes)]
        self._order_of_shards = lru_cache(maxsize=2)(self._shuffle_shards)
        self._order_in_shard = lru_cache(maxsize=16)(self._shuffle_shard)

    def batch(self, step: int) -> list[SampleKey]:
        """Return this rank's (position, index) pairs of one step."""
        turns = range(step * self.batch_size, (step + 1) * self.batch_size)
        positions = [self.position(turn) for turn in turns]
        return [(position, self.index(position)) for position in positions]

    def position(self, turn: int) -> int:
        """Return the position in the training stream of the sample that comes `turn`-th, from 0, on this rank."""
        epoch = turn * self.world_size // self.num_images
        while self._num_seen(epoch) > turn:
            epoch -= 1
        while self._num_seen(epoch + 1) <= turn:
            epoch += 1
        piece_start = self._num_seen_below(epoch + 1) - self._num_seen_below(epoch)
        return epoch * self.num_images + piece_start + turn - self._num_seen(epoch)

    def index(self, position: int) -> int:
        """Return which sample stands at a position of the training stream."""
        epoch, place = divmod(position, self.num_images)
        shards, starts = self._order_of_shards(epoch)
        number = bisect_right(starts, place) - 1
        shard = shards[number]
        return self._first_indices[shard] + self._order_in_shard(epoch, shard)[place - starts[number]]

    def _num_seen(self, epoch: int) -> int:
        """Samples of this rank before an epoch: all are dealt out evenly, what is left over to the lowest ranks."""
        share, left_over = divmod(epoch * self.num_images, self.world_size)
        return share + (self.rank < left_over)

    def _num_seen_below(self, epoch: int) -> int:
        """Samples of all lower ranks together before an epoch."""
        share, left_over = divmod(epoch * self.num_images, self.world_size)
        return share * self.rank + min(self.rank, left_over)

    def _shuffle_shards(self, epoch: int) -> tuple[list[int], list[int]]:
        """Return the shards in the order of an epoch, and the place in the epoch where each begins."""
        generator = sample_generator(self.seed, "shards", epoch)
        shards = torch.randperm(len(self.shard_sizes), generator=generator).tolist()
        return shards, [0, *accumulate(self.shard_sizes[shard] for shard in shards)][:-1]

    def _shuffle_shard(self, epoch: int, shard: int) -> list[int]:
        generator = sample_generator(self.seed, f"shard {shard}", epoch)
        return torch.randperm(self.shard_sizes[shard], generator=generator).tolist()


class ShardedEvaluationOrder(EvaluationOrder):
    """Every sample exactly once over all ranks, each rank a contiguous piece; the sample id is the index.

    Ranks may differ by one sample, and the last batch may be short: nothing is ever repeated to fill them up.
    """

    def __init__(self, num_samples: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(num_samples, batch_size)
        self.indices = range(rank * num_samples // world_size, (rank + 1) * num_samples // world_size)
