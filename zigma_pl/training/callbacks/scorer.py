"""The scores of `test`: compare samples of the averaged weights with held-out real images, and write a record."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L

from zigma_pl.core.clips import check_frames_per_second
from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.core.records import check_name
from zigma_pl.data.base import ImageDataModule, Split
from zigma_pl.data.labels import labels_of
from zigma_pl.evaluation.loss_by_time import LossByTime
from zigma_pl.evaluation.metrics.extractors import FeatureExtractor
from zigma_pl.evaluation.pictures import write_pictures
from zigma_pl.evaluation.protocol import describe_data, describe_machine_and_versions
from zigma_pl.evaluation.record import ResultRecord, ScoreValue, write_result
from zigma_pl.evaluation.sampling import Precision
from zigma_pl.evaluation.scoring import Scored, Scoring, ScoringOptions
from zigma_pl.evaluation.summary import score_table
from zigma_pl.training.callbacks.progress_file import ProgressFile
from zigma_pl.training.callbacks.scored_checkpoint import LoadedCheckpoint, callback_of, describe_training, take_weights
from zigma_pl.training.checkpoints.io import Weights
from zigma_pl.training.module import GenerativeModule

NO_CHECKPOINT = "test needs a checkpoint: give its path with --ckpt_path (see logs/*/*/checkpoints)"


class Scorer(L.Callback):
    """Score a checkpoint: compute the fixed losses of the test split, then compare samples with held-out real images.

    Samples are stored in <samples_dir>/<name>/<hash of everything they depend on>/, so that an interrupted run is
    resumed, and a run with more samples only generates the missing ones. Sample i has the noise of (seed, i) and the
    class or caption of item i of the split. Scores and protocol are written to <results_dir>/<name>.json.

    Args:
        num_samples: number of images or clips to generate; 0 only computes the losses.
        metrics: scores to compute: fid, sfid, kid, precision, recall, fdd, clip_score; for clips fvd and frame_fid.
            Without downloads: fid_lite, kid_lite, precision_lite, recall_lite; for clips frame_fid_lite. By default
            those without downloads, which are not comparable with published ones, and those on `extractors`.
        extractors: your own feature extractors by name, each given by class_path. The scores on an extractor named
            mine are fid_mine, kid_mine, precision_mine and recall_mine; for clips frame_fid_mine, or fvd_mine if it
            takes clips.
        split: split of the real images, and of the classes and captions used as conditions.
        weights: "average" for the averaged weights, "raw" for those that training resumes from.
        batch_size: samples per batch on a GPU; the last batch is always full, too. Another batch size changes samples
            by rounding, so they are generated again. On a CPU it is always 16, and samples do not depend on it.
        extractor_weights: weight files of feature extractors by name (inception, inception_spatial, dinov2, i3d, lite,
            clip_score), if they are not in the default folder of `python -m zigma_pl weights`.
        kid_num_subsets: number of subsets that KID is averaged over.
        kid_subset_size: samples per subset.
        num_neighbours: number of nearest neighbours that define the manifolds of precision and recall.
        results_dir: folder of the record and its images.
        name: name of the record; the logger's name by default.
        scale: scale of the run in the record; set by configs/scale/*.yaml.
        data_note: description of the images for titles of tables, if they are not the real data set.
        samples_dir: folder of the samples.
        reference_folder: folder for features of real images; by default in the user's cache folder.
        num_grid: number of samples in the grid, from id 0.
        num_columns: samples per row of the grid.
        frames_per_second: frame rate of clips, 1 to 50.
    """

    def __init__(
        self,
        num_samples: int = 5000,
        metrics: list[str] | None = None,
        extractors: dict[str, FeatureExtractor] | None = None,
        split: Split = "test",
        weights: Weights = "average",
        batch_size: int = 64,
        extractor_weights: dict[str, str] | None = None,
        kid_num_subsets: int = 100,
        kid_subset_size: int = 1000,
        num_neighbours: int = 3,
        results_dir: str = "results",
        name: str | None = None,
        scale: str = "as given",
        data_note: str | None = None,
        samples_dir: str = "samples",
        reference_folder: str | None = None,
        num_grid: int = 64,
        num_columns: int = 8,
        frames_per_second: int = 8,
    ) -> None:
        self.options = ScoringOptions(
            num_samples=num_samples,
            metrics=metrics,
            extractors=extractors or {},
            split=split,
            batch_size=batch_size,
            extractor_weights=extractor_weights or {},
            kid_num_subsets=kid_num_subsets,
            kid_subset_size=kid_subset_size,
            num_neighbours=num_neighbours,
            samples_dir=samples_dir,
            reference_folder=reference_folder,
        )
        check_whole_numbers("scorer", num_grid=num_grid, num_columns=num_columns)
        check_name(scale, "scorer.scale")
        check_frames_per_second("scorer", frames_per_second)
        self.weights: Weights = weights
        self.results_dir = Path(results_dir)
        self.name = name
        self.scale = scale
        self.data_note = data_note
        self.num_grid = num_grid
        self.num_columns = num_columns
        self.frames_per_second = frames_per_second
        self._scoring: Scoring | None = None
        self._checkpoint: LoadedCheckpoint | None = None
        self._report: str | None = None

    # --- before anything is computed ----------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check immediately that extractor weights and real images exist, and that the folder is writable."""
        if stage != "test":
            return
        trainer.test_loop.verbose = False  # `teardown` prints a table instead
        self._record_name(trainer)
        try:
            self.results_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"scorer.results_dir {self.results_dir} cannot be created ({error.strerror}): choose another folder"
            ) from error
        shows_progress = trainer.is_global_zero and trainer.progress_bar_callback is not None
        self._scoring = Scoring(_datamodule(trainer), self.options, shows_progress=shows_progress)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Load the selected weights, and remember the checkpoint."""
        if trainer.state.fn == "test":
            assert isinstance(pl_module, GenerativeModule)
            self._checkpoint = take_weights(trainer, pl_module, checkpoint, self.weights)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Load the features of the real images, or extract them."""
        if self._checkpoint is None:
            raise UserError(NO_CHECKPOINT)
        self._record_name(trainer)  # raises for an invalid name before sampling
        assert self._scoring is not None
        self._scoring.load_references(pl_module.device)

    # --- after the losses ---------------------------------------------------------------------------------------------

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Generate samples, score them, and write the record."""
        assert isinstance(pl_module, GenerativeModule)
        loss = pl_module.test_loss
        assert loss is not None
        if not math.isfinite(loss.value):
            raise UserError(
                f"the loss is {loss.value}: use --trainer.precision 32-true, or an earlier checkpoint if training "
                "diverged"
            )
        scored = self._score(trainer, pl_module)
        if trainer.is_global_zero:
            record = self._record(trainer, pl_module, scored)
            self._report = score_table(record, write_result(record, self.results_dir))
        trainer.strategy.barrier()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Print the scores, after the progress bars are closed."""
        if self._report is not None:
            print(self._report)
            self._report = None

    def _score(self, trainer: L.Trainer, module: GenerativeModule) -> Scored:
        assert self._scoring is not None
        assert self._checkpoint is not None
        progress = callback_of(trainer, ProgressFile)
        return self._scoring.score(
            module,
            {"checkpoint_sha256": self._checkpoint.sha256, "weights": self.weights},
            self._record_name(trainer),
            Precision(str(trainer.precision), trainer.precision_plugin.forward_context),
            None if progress is None else partial(progress.on_images_sampled, trainer),
        )

    def _record(self, trainer: L.Trainer, module: GenerativeModule, scored: Scored) -> ResultRecord:
        assert self._checkpoint is not None
        assert module.test_loss is not None
        assert module.test_velocity_loss is not None
        record_name = self._record_name(trainer)
        pictures: dict[str, Any] = {"grid": None, "clips": []}
        if scored.store is not None:
            ids = range(min(self.num_grid, self.options.num_samples))
            raw = _datamodule(trainer).held_out_conditions(self.options.split, ids)
            labels = labels_of(raw, module.trained_on.get("class_names"), list(module.backbone.conditioners))
            pictures = write_pictures(
                scored.store, self.results_dir / record_name, labels, self.num_columns, self.frames_per_second
            )
        protocol = {
            "data": describe_data(_datamodule(trainer), self.data_note),
            "weights": self.weights,
            "num_loss_samples": module.test_loss.num_samples,
            **scored.protocol,
        }
        parts = {
            "row": record_name,
            "scale": self.scale,
            "scores": {
                "validation_loss": _as_score(module.test_loss),
                "velocity_loss": _as_score(module.test_velocity_loss),
                **scored.scores,
            },
            "protocol": protocol,
            "training": describe_training(trainer, module, self._checkpoint),
            "machine": describe_machine_and_versions(module.device),
            "pictures": pictures,
        }
        return ResultRecord.model_validate(parts)

    def _record_name(self, trainer: L.Trainer) -> str:
        name = self.name or (trainer.logger.name if trainer.logger is not None else None)
        if not name:
            raise UserError("scorer.name is needed, as there is no logger whose name could be used: set it")
        check_name(name, "scorer.name (by default the logger's name)")
        return name


def _as_score(loss: LossByTime) -> ScoreValue:
    return ScoreValue(value=loss.value, by_time=loss.by_time)


def _datamodule(trainer: L.Trainer) -> ImageDataModule:
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(datamodule, ImageDataModule)
    return datamodule
