"""A grid of samples now and then while training, from the averaged weights."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from zigma_pl.callbacks.grid import as_chw_array, save_png, tile, to_pil, to_uint8
from zigma_pl.errors import UserError
from zigma_pl.module import GenerativeModule


class PreviewGrid(L.Callback):
    """Sample a grid during validation, when the averaged weights are in place, for TensorBoard and as a PNG file.

    The samples have the same noise and conditions each time, so that grids of different steps can be compared. The
    pictures are in <log folder>/previews/step_<step>.png and under "samples" in TensorBoard.

    Args:
        num_samples: pictures in the grid; 0 turns previews off.
        num_columns: pictures in a row.
        every_n_validations: draw at every n-th validation run.
    """

    def __init__(self, num_samples: int = 16, num_columns: int = 8, every_n_validations: int = 1) -> None:
        if num_samples < 0 or num_columns < 1 or every_n_validations < 1:
            raise UserError("preview needs num_samples >= 0, num_columns >= 1 and every_n_validations >= 1")
        self.num_samples = num_samples
        self.num_columns = num_columns
        self.every_n_validations = every_n_validations
        self._num_validations = 0

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Draw before the first validation batch of a fit: the average is swapped in for the whole validation."""
        if batch_idx > 0 or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._num_validations += 1
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # asks all processes, so all of them have to ask
        if self.num_samples and trainer.is_global_zero and self._num_validations % self.every_n_validations == 0:
            assert isinstance(pl_module, GenerativeModule)
            self.draw(trainer, pl_module, folder / "previews")

    def draw(self, trainer: L.Trainer, module: GenerativeModule, folder: Path) -> Path:
        """Sample one grid and save it in `folder`; returns the PNG's path."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        batch = datamodule.conditions(range(self.num_samples), module.device)
        pictures = to_uint8(datamodule.decode(module.sample(batch).latents))
        grid = tile([to_pil(picture) for picture in pictures], self.num_columns)
        path = folder / f"step_{trainer.global_step:08d}.png"
        save_png(grid, path)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("samples", as_chw_array(grid), trainer.global_step)
        return path
