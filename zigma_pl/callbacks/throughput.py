"""Training speed in images per second, logged beside the loss."""

import time
from typing import Any

import lightning as L

from zigma_pl.batch import Batch

IMAGES_PER_SECOND = "train/images_per_second"


class Throughput(L.Callback):
    """Log train/images_per_second, over all processes, each time the trainer logs; validation time is not counted."""

    def __init__(self) -> None:
        self._num_images = 0
        self._started: float | None = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock after a pause."""
        if self._started is None:
            self._num_images, self._started = 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the batch, and log when it is time to."""
        self._num_images += len(batch.sample_ids) * trainer.world_size
        due = trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if due and self._started is not None:
            rate = self._num_images / (time.perf_counter() - self._started)
            pl_module.log(IMAGES_PER_SECOND, rate, prog_bar=True)
            self._started = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        self._started = None
