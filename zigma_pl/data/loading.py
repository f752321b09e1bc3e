"""The data loaders of one process, starting at the current training step."""

from typing import Any, NamedTuple

import lightning as L

from zigma_pl.data.conditions import ConditionSamples, ItemConditions
from zigma_pl.data.order import EvaluationOrder, check_length
from zigma_pl.data.samples import SampleLoader, SplitSamples

_LENGTHS = ("max_epochs", "limit_train_batches", "overfit_batches", "fast_dev_run")


class Loaders(NamedTuple):
    """Creates the data loaders of one process.

    batch_size: samples per batch of this process.
    num_workers: worker processes per loader; 0 for none.
    trainer: gives the current step, the rank and the number of processes; None for a single process at step 0.
    """

    batch_size: int
    num_workers: int
    trainer: L.Trainer | None

    def training(self, samples: SplitSamples, seed: int) -> SampleLoader:
        """Return the endless training batches.

        Raises:
            UserError: the trainer has an option that would have no effect.
        """
        if self.trainer is not None:
            check_length({name: getattr(self.trainer, name, None) for name in _LENGTHS})
        order = samples.training_order(
            self.batch_size, seed=seed, steps_done=self._batches_done, **rank_and_world_size(self.trainer)
        )
        return SampleLoader(samples, order, self.num_workers)

    def evaluation(self, samples: SplitSamples) -> SampleLoader:
        """Return batches in which every sample occurs once over all processes."""
        order = samples.evaluation_order(self.batch_size, **rank_and_world_size(self.trainer))
        return SampleLoader(samples, order, self.num_workers)

    def conditions(self, samples: ConditionSamples | ItemConditions, num_samples: int) -> SampleLoader:
        """Return the conditions of sample ids 0 to num_samples - 1, each once over all processes."""
        order = EvaluationOrder(num_samples, self.batch_size, **rank_and_world_size(self.trainer))
        return SampleLoader(samples, order, num_workers=0)

    def _batches_done(self) -> int:
        """Return the number of training batches finished so far, including those before a resume.

        Batches, not optimiser steps, so that it is correct with gradient accumulation. Lightning's "processed" count is
        exact in every checkpoint; "ready" is one too high in checkpoints saved after an exception, and "completed" is
        one too low in checkpoints saved at the end of a batch.
        """
        if self.trainer is None:
            return 0
        batches: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        return int(batches.processed)


def rank_and_world_size(trainer: L.Trainer | None) -> dict[str, int]:
    """Return the rank of this process and the number of processes."""
    if trainer is None:
        return {"rank": 0, "world_size": 1}
    return {"rank": trainer.global_rank, "world_size": trainer.world_size}
