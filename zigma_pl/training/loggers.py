"""The default logger of runs."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zigma_pl.core.torch_private import add_summary

__all__ = ["TensorBoard"]

VALIDATION_LOSS = "validation/loss"  # shown next to the options in the HPARAMS tab


class TensorBoard(TensorBoardLogger):
    """Lightning's TensorBoard logger with all options in the HPARAMS tab, and without the epoch.

    The epoch is left out because training is counted in optimiser steps.

    Args:
        save_dir: folder of all runs.
        name: name of the experiment; by default the command line uses the name of the first config file.
        version: folder of the run in `<save_dir>/<name>`; by default the next `version_<n>`.
        purge_step: in a resumed run, hide what was logged from this step on.
        kwargs: options of `lightning.pytorch.loggers.TensorBoardLogger`.
    """

    def __init__(
        self,
        save_dir: str = "logs",
        name: str | None = None,
        version: int | str | None = None,
        purge_step: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(save_dir, name, version, purge_step=purge_step, **{"default_hp_metric": False, **kwargs})

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log all metrics except the epoch, which Lightning adds to each call."""
        metrics = {name: value for name, value in metrics.items() if name != "epoch"}
        super().log_metrics(metrics, step)

    @rank_zero_only
    def log_options(self, options: Mapping[str, Any]) -> None:
        """Write the options of a run to the HPARAMS tab.

        Args:
            options: by dotted name; values that are not numbers, texts or bools are converted to texts.
        """
        from torch.utils.tensorboard.summary import hparams

        shown = {
            name: value if isinstance(value, (bool, int, float)) else str(value) for name, value in options.items()
        }
        for summary in hparams(shown, {VALIDATION_LOSS: 0}):
            add_summary(self.experiment, summary, 0)
