"""Batch samplers: the endless training order, and the order of evaluation.

Both yield lists of (sample id, index) pairs. They need no state in checkpoints: given the step to resume from, they
yield the batches that an uninterrupted run would get.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from zigma_pl.core.batch import FILLER_ID
from zigma_pl.core.errors import UserError
from zigma_pl.core.randomness import sample_generator

SampleKey = tuple[int, int]


@lru_cache(maxsize=2)  # a batch spans at most two epochs, unless the data set is smaller than a batch
def epoch_permutation(num_images: int, seed: int, epoch: int) -> Tensor:
    """Return the order in which one epoch visits the images, a (num_images,) permutation."""
    return torch.randperm(num_images, generator=sample_generator(seed, "order", epoch))


def _start_from_the_first_step() -> int:
    return 0


class TrainingOrder(Sampler[list[SampleKey]]):
    """Endless shuffled batches that depend only on (seed, step, world size).

    The training stream has positions 0, 1, 2, ...; epoch e covers positions e * num_images to (e + 1) * num_images - 1
    and has its own permutation. Step s of rank r takes the positions s * world_size * batch_size + r * batch_size + i.
    So all ranks have the same number of batches, nothing is dropped or padded, and two ranks with batch size b together
    see the same images as one rank with batch size 2b. There is no `len`, as the stream is infinite.

    Args:
        num_images: images in the data set, at least 1; may be fewer than `batch_size`.
        batch_size: images per step and rank.
        seed: seed of the permutations.
        rank: this process, in [0, world_size).
        world_size: number of processes.
        steps_done: called when iteration starts; returns how many batches have already been used for training.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        steps_done: Callable[[], int] = _start_from_the_first_step,
    ) -> None:
        if num_images < 1:
            raise UserError("the training split has no images: check data.root and the options of the splits")
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.steps_done = steps_done

    def batch(self, step: int) -> list[SampleKey]:
        """Return this rank's (position, index) pairs of one step."""
        first = (step * self.world_size + self.rank) * self.batch_size
        return [(position, self.index(position)) for position in range(first, first + self.batch_size)]

    def index(self, position: int) -> int:
        """Return the index of the image at a position of the training stream."""
        epoch, offset = divmod(position, self.num_images)
        return int(epoch_permutation(self.num_images, self.seed, epoch)[offset])

    def __iter__(self) -> Iterator[list[SampleKey]]:
        step = self.steps_done()
        while True:
            yield self.batch(step)
            step += 1


class EvaluationOrder(Sampler[list[SampleKey]]):
    """Every sample exactly once over all ranks: rank r takes r, r + world_size, ...; the sample id is the index.

    All ranks have the same number of batches. The last batch may be smaller; a rank that has no sample left for it gets
    a filler batch, which is ignored in results (`Batch.is_filler`).
    """

    def __init__(self, num_samples: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, num_samples, world_size)
        self.batch_size = batch_size
        self.num_batches = -(-num_samples // (world_size * batch_size))

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for start in range(0, self.num_batches * self.batch_size, self.batch_size):
            indices = self.indices[start : start + self.batch_size]
            yield [(index, index) for index in indices] or [(FILLER_ID, 0)]

    def __len__(self) -> int:
        return self.num_batches


def check_length(options: Mapping[str, Any]) -> None:
    """Reject options for the length of training that have no effect, as the training order is infinite.

    Raises: UserError that names the option and the remedy.
    """
    if options.get("overfit_batches"):
        raise UserError("trainer.overfit_batches is not supported with the infinite training order: remove it")
    limit = options.get("limit_train_batches")
    num_batches = limit if isinstance(limit, int) else None
    if options.get("max_epochs") not in (None, -1) and num_batches is None and not options.get("fast_dev_run"):
        raise UserError(
            f"trainer.max_epochs {options['max_epochs']} has no effect, as training has no epochs: set "
            "trainer.max_steps instead"
        )
    if isinstance(limit, float) and limit != 1.0:
        raise UserError(
            f"trainer.limit_train_batches {limit} is a fraction of an infinite order: give a number of batches"
        )
