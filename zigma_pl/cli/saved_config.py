"""The options of a training run, saved beside its checkpoints and shown in TensorBoard."""

from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.cli import SaveConfigCallback

from zigma_pl.training.checkpoints.run_folder import run_folder
from zigma_pl.training.loggers import TensorBoard

CONFIG_FILE = "config.yaml"  # in the folder of a run
SHOWN_GROUPS = ("model.", "data.", "ema.")
SHOWN_OPTIONS = (
    "seed_everything",
    "trainer.max_steps",
    "trainer.precision",
    "trainer.gradient_clip_val",
    "trainer.accumulate_grad_batches",
    "trainer.devices",
    "trainer.num_nodes",
)


class SaveConfigOnFit(SaveConfigCallback):
    """Save the whole config in the folder of a training run; other commands save none."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save when training starts, in the folder of the run, with any logger."""
        folder = run_folder(trainer)
        if stage == "fit" and trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, folder / CONFIG_FILE, skip_unset=False, overwrite=True, multifile=False)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the options in TensorBoard, once training has started."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoard):
                logger.log_options(shown_options(self.config))


def shown_options(config: Namespace) -> dict[str, Any]:
    """Return the options of a run that TensorBoard shows, by dotted name."""
    flat = vars(config.as_flat())
    return {
        name.replace("init_args.", ""): value
        for name, value in flat.items()
        if value is not None and (name.startswith(SHOWN_GROUPS) or name in SHOWN_OPTIONS)
    }
