"""Preview grids of samples during training, generated with the averaged weights."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor

from zigma_pl.core.clips import (
    can_write_mp4,
    check_frames_per_second,
    log_gif,
    save_gif,
    save_mp4,
    stills,
    tile_clips,
    to_clip,
)
from zigma_pl.core.grid import as_chw_array, save_png, tile, to_pil, to_uint8
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.data.labels import labels_of
from zigma_pl.training.checkpoints.run_folder import run_folder
from zigma_pl.training.module import GenerativeModule


class PreviewGrid(L.Callback):
    """Generate a grid of samples during validation, for TensorBoard and as a file.

    Uses the averaged weights, which are swapped in during validation. Noise and conditions are the same each time, so
    that grids of different steps can be compared; classes and captions are those of the data (see
    `ImageDataModule.raw_conditions`), and are shown below the samples. Grids are written to
    <log folder>/previews/step_<step>.png and to "samples" in TensorBoard. Grids of videos are animated: a .gif and, if
    PyAV is installed, also an .mp4 file, and "clips" in TensorBoard; "samples" then shows the frames of each video in a
    row.

    Args:
        num_samples: samples in the grid; 0 disables previews.
        num_columns: samples per row.
        every_n_validations: generate a grid in every n-th validation.
        frames_per_second: frame rate of videos, 1 to 50.
    """

    def __init__(
        self,
        num_samples: int = 16,
        num_columns: int = 8,
        every_n_validations: int = 1,
        frames_per_second: int = 8,
    ) -> None:
        check_whole_numbers("preview", least=0, num_samples=num_samples)
        check_whole_numbers("preview", num_columns=num_columns, every_n_validations=every_n_validations)
        check_frames_per_second("preview", frames_per_second)
        self.num_samples = num_samples
        self.num_columns = num_columns
        self.every_n_validations = every_n_validations
        self.frames_per_second = frames_per_second
        self._num_validations = 0

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Generate a grid before the first validation batch of `fit`, when the average is swapped in."""
        if batch_idx > 0 or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._num_validations += 1
        folder = run_folder(trainer)
        if self.num_samples and trainer.is_global_zero and self._num_validations % self.every_n_validations == 0:
            assert isinstance(pl_module, GenerativeModule)
            self.save_grid(trainer, pl_module, folder / "previews")

    def save_grid(self, trainer: L.Trainer, module: GenerativeModule, folder: Path) -> Path:
        """Generate one grid and save it in `folder`; returns the path of the PNG, or of the GIF for videos."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        ids = range(self.num_samples)
        raw = datamodule.raw_conditions(ids)
        labels = labels_of(raw, module.trained_on.get("class_names"), list(module.backbone.conditioners))
        samples = to_uint8(datamodule.decode(module.sample(datamodule.conditions(ids, module.device)).latents))
        stem = f"step_{trainer.global_step:08d}"
        writers = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if samples.ndim == 5:
            path = folder / f"{stem}.gif"
            shown = self._save_clips(samples, labels, path)
            for writer in writers:
                log_gif(writer, "clips", path, trainer.global_step)
        else:
            path = folder / f"{stem}.png"
            shown = tile([to_pil(picture) for picture in samples], self.num_columns, labels)
            save_png(shown, path)
        for writer in writers:
            writer.add_image("samples", as_chw_array(shown), trainer.global_step)
        return path

    def _save_clips(self, samples: Tensor, labels: list[str], path: Path) -> Image.Image:
        """Write the animated grid of (B, F, H, W, C) uint8; returns the still frames as one image."""
        clips = [to_clip(frames) for frames in samples]
        grid = tile_clips(clips, self.num_columns, labels)
        save_gif(grid, path, self.frames_per_second)
        if can_write_mp4():
            save_mp4(grid, path.with_suffix(".mp4"), self.frames_per_second)
        return stills(clips, labels)
