"""Scores of `test`: samples of the averaged weights, compared with held-out real pictures, in a record."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning as L

from zigma_pl.callbacks.clips import check_frames_per_second
from zigma_pl.data.base import ImageDataModule, Split
from zigma_pl.data.images import CROP
from zigma_pl.errors import UserError
from zigma_pl.evaluation.features import FeatureSet, Pictures, extract
from zigma_pl.evaluation.held_out import RealPictures, describe_real_pictures, real_chunks
from zigma_pl.evaluation.pictures import write_pictures
from zigma_pl.evaluation.protocol import (
    LoadedCheckpoint,
    Weights,
    describe_machine_and_versions,
    describe_training,
    take_weights,
)
from zigma_pl.evaluation.record import ResultRecord, Score, write_record
from zigma_pl.evaluation.reference import Reference, ReferenceFiles, default_reference_folder, load_or_make
from zigma_pl.evaluation.sampling import CPU_GROUP_SIZE, describe_sampling, draw_missing, shows_progress
from zigma_pl.evaluation.scores import (
    CLIP_SCORE,
    SCORES,
    Features,
    ScoreOptions,
    by_features,
    check_counts,
    check_names,
    choose_scores,
    compute,
)
from zigma_pl.evaluation.store import Chunk, SampleStore
from zigma_pl.evaluation.summary import score_table
from zigma_pl.metrics.clip_score import ClipScore
from zigma_pl.metrics.extractors import FeatureExtractor, build_extractor
from zigma_pl.module import GenerativeModule
from zigma_pl.ranges import check_whole_numbers
from zigma_pl.records import check_name

NO_CHECKPOINT = "test scores a checkpoint: give --ckpt_path (see logs/*/*/checkpoints)"


class Scorer(L.Callback):
    """Score a checkpoint: the fixed loss of the test split, then samples against held-out real pictures.

    Samples are kept in <samples_dir>/<row>/<hash of all they depend on>/, so that a run that was cut off goes on, and
    one that asks for more samples draws only those. Sample i has the noise of (seed, i) and the class or caption of
    item i of the split. What the scores are, and how they came about, is in <results_dir>/<row>.json.

    Args:
        num_samples: pictures or clips to draw; 0 computes nothing but the loss.
        metrics: scores to compute, of fid, sfid, kid, precision, recall, fdd, clip_score, of clips fvd and frame_fid,
            and without downloads fid_lite, kid_lite, precision_lite, recall_lite, of clips frame_fid_lite. By default
            those without downloads, which are not comparable with published ones.
        split: real pictures to compare with, and classes and captions to draw under.
        weights: average takes the averaged weights, raw those that training goes on from.
        batch_size: samples drawn at once on a GPU, always as many, also at the end. With another number they differ by
            rounding, and are drawn anew. On a CPU it is always 16, and samples do not depend on it.
        extractor_weights: files of feature extractors by name (inception, inception_spatial, dinov2, i3d, lite,
            clip_score), where they are not in the folder that `python -m zigma_pl weights` fills.
        kid_num_subsets: subsets that KID is the mean of.
        kid_subset_size: samples in each.
        num_neighbours: neighbours that span the manifolds of precision and recall.
        results_dir: where the record goes, and its pictures.
        row: name of the record; by default that of the logger.
        scale: what the record says of the scale of the run; configs/scale/*.yaml set it.
        data_note: what the pictures are, where they are not the real set in spite of its layout; for titles of tables.
        samples_dir: where samples are kept.
        reference_folder: where features of real pictures are kept; by default below the user's cache folder.
        num_grid: how many of the samples, from id 0, the grid shows.
        num_columns: pictures in a row of the grid.
        frames_per_second: at which clips are played, 1 to 50.
    """

    def __init__(
        self,
        num_samples: int = 5000,
        metrics: list[str] | None = None,
        split: Split = "test",
        weights: Weights = "average",
        batch_size: int = 64,
        extractor_weights: dict[str, str] | None = None,
        kid_num_subsets: int = 100,
        kid_subset_size: int = 1000,
        num_neighbours: int = 3,
        results_dir: str = "results",
        row: str | None = None,
        scale: str = "as given",
        data_note: str | None = None,
        samples_dir: str = "samples",
        reference_folder: str | None = None,
        num_grid: int = 64,
        num_columns: int = 8,
        frames_per_second: int = 8,
    ) -> None:
        check_whole_numbers("scorer", batch_size=batch_size, num_neighbours=num_neighbours)
        check_whole_numbers("scorer", kid_num_subsets=kid_num_subsets, num_grid=num_grid, num_columns=num_columns)
        check_whole_numbers("scorer", least=0, num_samples=num_samples)
        check_whole_numbers("scorer", least=2, kid_subset_size=kid_subset_size)
        check_name(scale, "scorer.scale")
        check_names(metrics or [])
        check_frames_per_second("scorer", frames_per_second)
        self.num_samples = num_samples
        self.metrics = metrics
        self.split: Split = split
        self.weights: Weights = weights
        self.batch_size = batch_size
        self.extractor_weights = extractor_weights or {}
        self.score_options = ScoreOptions(kid_num_subsets, kid_subset_size, num_neighbours)
        self.results_dir = Path(results_dir)
        self.row = row
        self.scale = scale
        self.data_note = data_note
        self.samples_dir = Path(samples_dir)
        self.reference_folder = default_reference_folder() if reference_folder is None else Path(reference_folder)
        self.num_grid = num_grid
        self.num_columns = num_columns
        self.frames_per_second = frames_per_second
        self._names: list[str] = []
        self._extractors: dict[Features, FeatureExtractor | ClipScore] = {}
        self._references: dict[Features, Reference] = {}
        self._checkpoint: LoadedCheckpoint | None = None
        self._report: str | None = None

    # --- before anything is computed ----------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find whatever is missing at once: weights of extractors, real pictures, a folder that can be written to."""
        if stage != "test":
            return
        trainer.test_loop.verbose = False  # our own table is printed at the end
        self._row_name(trainer)
        try:
            self.results_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"scorer.results_dir {self.results_dir} cannot be made ({error.strerror}): choose another"
            ) from error
        self._prepare_scores(_datamodule(trainer))

    def scores_of(self, datamodule: ImageDataModule) -> list[str]:
        """Return the names of the scores that `test` computes on these data, none where nothing is sampled.

        Raises:
            UserError: a score does not suit the data, or there are too few real or generated samples for it.
        """
        if not self.num_samples:
            return []
        of_clips = datamodule.num_frames is not None
        names = choose_scores(self.metrics, of_clips=of_clips, has_captions=datamodule.has_captions)
        if any(SCORES[name].distance != "captions" for name in names):
            check_counts(names, self.score_options, len(RealPictures(datamodule, self.split)), self.num_samples)
        return names

    def _prepare_scores(self, datamodule: ImageDataModule) -> None:
        self._names = self.scores_of(datamodule)
        self._extractors = {features: self._build(features.extractor) for features in by_features(self._names)}

    def _build(self, name: str) -> FeatureExtractor | ClipScore:
        weights = self.extractor_weights.get(name)
        return ClipScore(weights) if name == CLIP_SCORE else build_extractor(name, weights)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the weights that are asked for, and note which checkpoint it is."""
        if trainer.state.fn == "test":
            assert isinstance(pl_module, GenerativeModule)
            self._checkpoint = take_weights(trainer, pl_module, checkpoint, self.weights)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Load the features of the real pictures, or extract them."""
        if self._checkpoint is None:
            raise UserError(NO_CHECKPOINT)
        self._row_name(trainer)  # a name that cannot be used is refused before hours of sampling
        for features, extractor in self._extractors.items():
            extractor.to(pl_module.device)
            if isinstance(extractor, FeatureExtractor):
                self._references[features] = self._reference(trainer, features, extractor)

    def _reference(self, trainer: L.Trainer, features: Features, extractor: FeatureExtractor) -> Reference:
        datamodule = _datamodule(trainer)
        pictures = RealPictures(datamodule, self.split)
        data = describe_real_pictures(datamodule, self.split, pictures)
        files = ReferenceFiles(self.reference_folder, data, extractor.fingerprint(), features.name)
        keep = self._needs_each_sample(features)

        def make() -> FeatureSet:
            share = real_chunks(pictures, datamodule.num_workers, trainer.global_rank, trainer.world_size)
            return self._extract(trainer, features, share, len(pictures), "real")

        return load_or_make(files, make, with_features=keep, is_global_zero=trainer.is_global_zero)

    def _extract(
        self, trainer: L.Trainer, features: Features, chunks: Iterable[Pictures], num_samples: int, whose: str
    ) -> FeatureSet:
        extractor = self._extractors[features]
        assert isinstance(extractor, FeatureExtractor)
        return extract(
            extractor,
            chunks,
            num_samples,
            num_frames=_datamodule(trainer).num_frames if features.of == "frames" else None,
            keep=self._needs_each_sample(features),
            shown_as=f"{features.name} of {whose} {features.of}" if shows_progress(trainer) else None,
        )

    def _needs_each_sample(self, features: Features) -> bool:
        return any(SCORES[name].needs_each_sample for name in by_features(self._names)[features])

    # --- after the loss -----------------------------------------------------------------------------------------------

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw samples, score them, and write the record."""
        assert isinstance(pl_module, GenerativeModule)
        assert pl_module.test_loss is not None
        assert self._checkpoint is not None
        loss = pl_module.test_loss
        if not math.isfinite(loss.value):
            raise UserError(
                f"the loss is {loss.value}: use trainer.precision=32-true, or an earlier checkpoint if training has "
                "diverged"
            )
        scores = {"validation_loss": Score(value=loss.value, by_time=loss.by_time)}
        protocol: dict[str, Any] = {
            "data": self._describe_data(_datamodule(trainer)),
            "weights": self.weights,
            "num_loss_samples": loss.num_samples,
        }
        pictures: dict[str, Any] = {"grid": None, "clips": []}
        if self.num_samples:
            identity = describe_sampling(trainer, pl_module, _datamodule(trainer), self.split)
            store = self._sampled(trainer, pl_module, identity)
            for features, names in by_features(self._names).items():
                scores |= self._scores(trainer, store, features, names)
            if trainer.is_global_zero:
                protocol |= self._protocol(store, identity)
                pictures = write_pictures(
                    store,
                    self.results_dir / self._row_name(trainer),
                    min(self.num_grid, self.num_samples),
                    self.num_columns,
                    self.frames_per_second,
                )
        if trainer.is_global_zero:
            training = describe_training(trainer, pl_module, self._checkpoint)
            machine = describe_machine_and_versions(trainer, pl_module)
            parts = {
                "row": self._row_name(trainer),
                "scale": self.scale,
                "scores": scores,
                "protocol": protocol,
                "training": training,
                "machine": machine,
                "pictures": pictures,
            }
            record = ResultRecord.model_validate(parts)
            self._report = score_table(record, write_record(record, self.results_dir))
        trainer.strategy.barrier()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Print the scores, now that the progress bars are gone."""
        if self._report is not None:
            print(self._report)
            self._report = None

    def _sampled(self, trainer: L.Trainer, module: GenerativeModule, identity: dict[str, Any]) -> SampleStore:
        assert self._checkpoint is not None
        whole = {"checkpoint_sha256": self._checkpoint.sha256, "weights": self.weights, **identity}
        size = CPU_GROUP_SIZE if module.device.type == "cpu" else self.batch_size
        store = SampleStore(self.samples_dir / self._row_name(trainer), whole, size)
        draw_missing(trainer, module, _datamodule(trainer), self.split, store, self.num_samples)
        return store

    def _scores(self, trainer: L.Trainer, store: SampleStore, features: Features, names: list[str]) -> dict[str, Score]:
        extractor = self._extractors[features]
        chunks = self._share(trainer, store)
        if isinstance(extractor, ClipScore):
            return {CLIP_SCORE: self._clip_score(trainer, extractor, chunks)}
        fake = self._extract(trainer, features, chunks, self.num_samples, "sampled")
        if not trainer.is_global_zero:
            return {}
        device = trainer.strategy.root_device
        return compute(
            names,
            self._references[features],
            fake,
            self.score_options,
            comparable=extractor.comparable,
            device=device if device.type == "cuda" else "cpu",  # others may lack float64
        )

    def _share(self, trainer: L.Trainer, store: SampleStore) -> Iterator[Chunk]:
        for number in store.numbers(self.num_samples, trainer.global_rank, trainer.world_size):
            yield store.read_first(number, self.num_samples)

    def _clip_score(self, trainer: L.Trainer, extractor: ClipScore, chunks: Iterator[Chunk]) -> Score:
        extractor.reset()
        for chunk in chunks:
            captions = _datamodule(trainer).held_out_conditions(self.split, chunk.sample_ids.tolist()).captions
            assert captions is not None
            extractor.update(chunk.pictures, captions, chunk.sample_ids)
        return Score(value=float(extractor.compute()), comparable=extractor.comparable)

    def _protocol(self, store: SampleStore, identity: dict[str, Any]) -> dict[str, Any]:
        num_real = [reference.num_real for reference in self._references.values()]
        return {
            **identity,
            "num_network_calls": store.num_network_calls(self.num_samples),
            "num_fake": self.num_samples,
            "num_real": max(num_real, default=None),
            "split": self.split,
            "resize": CROP,
            "reference_sha256": {features.name: kept.sha256 for features, kept in self._references.items()},
            "extractors": {features.name: used.fingerprint() for features, used in self._extractors.items()},
            **vars(self.score_options),
            "samples_drawn_together": store.chunk_size,
            "samples": str(store.folder),
        }

    def _describe_data(self, datamodule: ImageDataModule) -> dict[str, Any]:
        standin = bool(getattr(datamodule, "standin", False))
        return {"dataset": type(datamodule).__name__, "standin": standin, "note": self.data_note}

    def _row_name(self, trainer: L.Trainer) -> str:
        name = self.row or (trainer.logger.name if trainer.logger is not None else None)
        if not name:
            raise UserError("scorer.row: there is no logger to take the name of the row from; give one")
        check_name(name, "scorer.row (by default the logger's name)")
        return name


def _datamodule(trainer: L.Trainer) -> ImageDataModule:
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(datamodule, ImageDataModule)
    return datamodule
