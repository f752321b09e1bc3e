"""Write the samples of `predict`: a PNG or a video for each sample id, a table of them in JSON, and a grid."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
from PIL import Image

from zigma_pl.core.batch import RawBatch
from zigma_pl.core.class_paths import summary
from zigma_pl.core.clips import check_frames_per_second, clip_suffix, read_clip, save_clip, tile_clips, to_clip
from zigma_pl.core.errors import UserError
from zigma_pl.core.files import whole_file
from zigma_pl.core.grid import save_png, tile, to_pil, to_uint8
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.data.labels import class_label
from zigma_pl.interpolant.samplers import Guidance
from zigma_pl.training.module import Samples


class SampleWriter(L.Callback):
    """Write samples to a folder as they are generated: 00000000.png, 00000001.png, ..., samples.json and grid.png.

    Videos are written as .mp4 files, or as .gif if PyAV is not installed.

    Args:
        folder: output folder; existing files of the same name are replaced.
        num_grid: number of samples in the grid, from id 0.
        num_columns: samples per row of the grid.
        frames_per_second: frame rate of videos, 1 to 50.
    """

    def __init__(
        self, folder: str = "samples", num_grid: int = 100, num_columns: int = 10, frames_per_second: int = 8
    ) -> None:
        check_whole_numbers("samples", num_grid=num_grid, num_columns=num_columns)
        check_frames_per_second("samples", frames_per_second)
        self.folder = Path(folder)
        self.num_grid = num_grid
        self.num_columns = num_columns
        self.frames_per_second = frames_per_second
        self._num_network_calls = 0
        self._suffix = ".png"

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Create the folder before sampling, so that an invalid one raises immediately."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"samples.folder {self.folder} cannot be created ({error.strerror}): choose another folder"
            ) from error
        if trainer.datamodule.num_frames is not None:  # type: ignore[attr-defined]
            self._suffix = clip_suffix()

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the images or videos of one batch."""
        assert isinstance(outputs, Samples)
        if not len(outputs.sample_ids):
            return
        self._num_network_calls = outputs.num_network_calls
        pictures = to_uint8(trainer.datamodule.decode(outputs.latents))  # type: ignore[attr-defined]
        for sample_id, picture in zip(outputs.sample_ids.tolist(), pictures, strict=True):
            if picture.ndim == 4:
                save_clip(to_clip(picture), self.path(sample_id), self.frames_per_second)
            else:
                save_png(to_pil(picture), self.path(sample_id))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the table and the grid, after all processes have written their samples."""
        trainer.strategy.barrier()
        if not trainer.is_global_zero:
            return
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        table = self.describe(pl_module, datamodule)
        with whole_file(self.folder / "samples.json") as temporary:
            temporary.write_text(json.dumps(table, indent=1) + "\n")
        grid = (self.folder / "grid").with_suffix(self._suffix)
        shown = table["samples"][: self.num_grid]
        labels = [": ".join(str(row[name]) for name in ("class", "caption") if name in row) for row in shown]
        self._save_grid([self.path(row["sample_id"]) for row in shown], labels, grid)
        print(f"\n{len(table['samples'])} samples, {self._num_network_calls} network calls each: {grid}")

    def _save_grid(self, shown: list[Path], labels: list[str], grid: Path) -> None:
        if grid.suffix == ".png":
            save_png(tile([Image.open(path, formats=["PNG"]) for path in shown], self.num_columns, labels), grid)
        else:
            clips = [read_clip(path, self.frames_per_second) for path in shown]
            save_clip(tile_clips(clips, self.num_columns, labels), grid, self.frames_per_second)

    def path(self, sample_id: int) -> Path:
        """Return the path of a sample's image or video."""
        return self.folder / f"{sample_id:08d}{self._suffix}"

    def describe(self, pl_module: L.LightningModule, datamodule: Any) -> dict[str, Any]:
        """Return the content of samples.json: how the samples were generated, and the class or caption of each."""
        module = cast(Any, pl_module)
        num_samples, size = datamodule.num_predict_samples, datamodule.batch_size
        t_start, t_end = module.predict_times
        rows: list[dict[str, Any]] = []
        for first in range(0, num_samples, size):
            ids = range(first, min(first + size, num_samples))
            rows += self._rows(datamodule.raw_conditions(ids), module.trained_on.get("class_names"))
        return {
            "seed": module.seed,
            "sampler": summary(module.sampler),
            "guidance": summary(module.guidance, Guidance),
            **({} if module.weak_backbone is None else {"weak_model": summary(module.weak_backbone)}),
            **({} if t_start == 1 else {"t_start": t_start}),
            **({} if t_end == 0 else {"t_end": t_end}),
            "num_network_calls": self._num_network_calls,
            "samples": rows,
        }

    def _rows(self, raw: RawBatch, class_names: Sequence[str] | None) -> list[dict[str, Any]]:
        ids = raw.sample_ids.tolist()
        rows: list[dict[str, Any]] = [{"sample_id": sample_id, "file": self.path(sample_id).name} for sample_id in ids]
        if raw.class_ids is not None:
            for row, class_id in zip(rows, raw.class_ids.tolist(), strict=True):
                row |= {"class_id": class_id, "class": class_label(class_id, class_names)}
        if raw.captions is not None:
            for row, caption in zip(rows, raw.captions, strict=True):
                row["caption"] = caption
        return rows
