"""A split that lies in tar shards: which shard a sample is in, and orders that read one shard after another."""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from torch.utils.data import Sampler

from zigma_pl.data.order import SampleKey
from zigma_pl.data.samples import SplitSamples
from zigma_pl.data.sharded_order import ShardedEvaluationOrder, ShardedTrainingOrder
from zigma_pl.data.tar_shards import ShardIndex, TarShard
from zigma_pl.errors import UserError

_MAX_OPEN_SHARDS = 4  # of a worker; a batch touches two, unless shards are smaller than a batch


class ShardReader:
    """Samples of many shards by their index, reading one shard after another.

    Args:
        shard_sizes: samples in each shard.
        open_number: opens a shard by its place in the list; it is also given the index of an earlier time, or None.
    """

    def __init__(self, shard_sizes: Sequence[int], open_number: Callable[[int, ShardIndex | None], TarShard]) -> None:
        self.shard_sizes = list(shard_sizes)
        self.open_number = open_number
        self._first_indices = [0, *accumulate(self.shard_sizes)]
        self._open: OrderedDict[int, TarShard] = OrderedDict()
        self._indices: dict[int, ShardIndex] = {}

    def __len__(self) -> int:
        return self._first_indices[-1]

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs, which opens the shards itself."""
        return {**self.__dict__, "_open": OrderedDict(), "_indices": {}}

    def locate(self, index: int) -> tuple[TarShard, int]:
        """Return the shard that a sample is in, kept open for the next ones, and its place there.

        Raises:
            UserError: the shard cannot be read, or holds another number of samples than it should.
        """
        number = bisect_right(self._first_indices, index) - 1
        if number not in self._open:
            self._open[number] = self._checked(number)
            if len(self._open) > _MAX_OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number], index - self._first_indices[number]

    def _checked(self, number: int) -> TarShard:
        shard = self.open_number(number, self._indices.get(number))
        if len(shard) != self.shard_sizes[number]:
            raise UserError(
                f"shard {shard.name} holds {len(shard)} samples, expected {self.shard_sizes[number]}: it is not the "
                "one that was counted; restore it, or count or prepare again"
            )
        self._indices[number] = shard.index
        return shard


class ShardedSamples(SplitSamples):
    """A split in shards; its orders read one shard after another.

    Args:
        reader: of the shards.
    """

    def __init__(self, reader: ShardReader) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def training_order(
        self, batch_size: int, *, seed: int, rank: int, world_size: int, steps_done: Callable[[], int]
    ) -> Sampler[list[SampleKey]]:
        """Return the endless shuffled batches; see `ShardedTrainingOrder` for the arguments."""
        return ShardedTrainingOrder(
            self.reader.shard_sizes, batch_size, seed=seed, rank=rank, world_size=world_size, steps_done=steps_done
        )

    def evaluation_order(self, batch_size: int, *, rank: int, world_size: int) -> Sampler[list[SampleKey]]:
        """Return every sample once over all ranks; see `ShardedEvaluationOrder`."""
        return ShardedEvaluationOrder(len(self), batch_size, rank=rank, world_size=world_size)
