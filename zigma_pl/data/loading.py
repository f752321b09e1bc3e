"""The loaders of a run: each process's share of an order, from the step that training has come to."""

from typing import Any, NamedTuple

import lightning as L

from zigma_pl.data.order import EvaluationOrder, check_length
from zigma_pl.data.samples import ConditionSamples, SampleLoader, SplitSamples

_LENGTHS = ("max_epochs", "limit_train_batches", "overfit_batches", "fast_dev_run")


class Loaders(NamedTuple):
    """Makes the loaders of one process.

    batch_size: samples per batch of this process.
    num_workers: worker processes of a loader; 0 for none.
    trainer: whose step and number of processes count; None for a single process at step 0.
    """

    batch_size: int
    num_workers: int
    trainer: L.Trainer | None

    def training(self, samples: SplitSamples, seed: int) -> SampleLoader:
        """Return the endless training batches.

        Raises:
            UserError: the trainer has an option that would be ignored.
        """
        if self.trainer is not None:
            check_length({name: getattr(self.trainer, name, None) for name in _LENGTHS})
        order = samples.training_order(
            self.batch_size, seed=seed, steps_done=self._batches_done, **rank_and_world_size(self.trainer)
        )
        return SampleLoader(samples, order, self.num_workers)

    def evaluation(self, samples: SplitSamples) -> SampleLoader:
        """Return every sample once over all processes."""
        order = samples.evaluation_order(self.batch_size, **rank_and_world_size(self.trainer))
        return SampleLoader(samples, order, self.num_workers)

    def conditions(self, samples: ConditionSamples, num_samples: int) -> SampleLoader:
        """Return the conditions of sample ids 0 to num_samples - 1, once over all processes."""
        order = EvaluationOrder(num_samples, self.batch_size, **rank_and_world_size(self.trainer))
        return SampleLoader(samples, order, num_workers=0)

    def _batches_done(self) -> int:
        """Return how many batches training has finished, also over earlier runs.

        Counted in batches, not optimiser steps, so it holds under gradient accumulation. "processed" is exact in every
        checkpoint, while "ready" is one too high in one saved by an exception, and "completed" one too low in one
        saved at the end of a batch.
        """
        if self.trainer is None:
            return 0
        batches: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        return int(batches.processed)


def rank_and_world_size(trainer: L.Trainer | None) -> dict[str, int]:
    """Return which process this is, and of how many."""
    if trainer is None:
        return {"rank": 0, "world_size": 1}
    return {"rank": trainer.global_rank, "world_size": trainer.world_size}
