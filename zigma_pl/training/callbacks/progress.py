"""The progress bar of training: optimiser steps and the most important metrics."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar

from zigma_pl.training.callbacks.throughput import IMAGES_PER_SECOND

SHORT_NAMES = {"train/loss": "loss", "validation/loss": "validation", IMAGES_PER_SECOND: "images/s"}


class StepProgressBar(TQDMProgressBar):
    """A progress bar over optimiser steps, as training has no epochs."""

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Start the bar at the current step."""
        super().on_train_epoch_start(trainer, *_)
        self.train_progress_bar.set_description("training")

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, int | str | float | Any]:
        """Return the metrics that are shown to the right of the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        return {short: metrics[name] for name, short in SHORT_NAMES.items() if name in metrics}
