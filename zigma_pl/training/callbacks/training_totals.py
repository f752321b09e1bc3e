"""Totals of training that are stored in checkpoints: samples seen and time, over all runs."""

import time
from typing import Any

import lightning as L

from zigma_pl.core.batch import Batch


class TrainingTotals(L.Callback):
    """Count samples and seconds of training. The totals are stored in checkpoints, and resumed runs continue them.

    Attributes:
        samples_seen: number of samples over all processes.
        seconds: time of training, including validation, over all runs.
    """

    def __init__(self) -> None:
        self.samples_seen = 0
        self.seconds = 0.0
        self._counted_until: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._counted_until = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the batch."""
        self.samples_seen += len(batch.sample_ids) * trainer.world_size

    def state_dict(self) -> dict[str, Any]:
        """Return the current totals."""
        if self._counted_until is not None:
            now = time.perf_counter()
            self.seconds += now - self._counted_until
            self._counted_until = now
        return {"samples_seen": self.samples_seen, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the totals."""
        self.samples_seen, self.seconds = state_dict["samples_seen"], state_dict["seconds"]
