"""The progress bar: steps done of the steps to do, and the few numbers that one looks at."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar

from zigma_pl.training.callbacks.throughput import IMAGES_PER_SECOND

SHORT_NAMES = {"train/loss": "loss", "validation/loss": "validation", IMAGES_PER_SECOND: "images/s"}


class Progress(TQDMProgressBar):
    """A bar over optimiser steps instead of epochs: the training stream has no end."""

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Start the bar, at the step that a resumed run has come to."""
        super().on_train_epoch_start(trainer, *_)
        self.train_progress_bar.set_description("training")

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, int | str | float | Any]:
        """Return what stands to the right of the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        return {short: metrics[name] for name, short in SHORT_NAMES.items() if name in metrics}
