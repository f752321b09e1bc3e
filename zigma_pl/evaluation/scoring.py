"""Scoring a model's samples against held-out real images, with or without a Trainer."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from zigma_pl.core.processes import rank, world_size
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.core.records import check_name
from zigma_pl.data.base import ImageDataModule, Split
from zigma_pl.data.images import CROP
from zigma_pl.encoders.weights import hash_of_weights
from zigma_pl.evaluation.features import FeatureSet, PictureChunk, extract
from zigma_pl.evaluation.held_out import RealPictures, describe_real_pictures, real_chunks
from zigma_pl.evaluation.metrics.clip_score import ClipScore
from zigma_pl.evaluation.metrics.extractors import FeatureExtractor, build_extractor
from zigma_pl.evaluation.record import ScoreValue
from zigma_pl.evaluation.reference import Reference, ReferenceFiles, default_reference_folder, load_or_make
from zigma_pl.evaluation.sampling import (
    CPU_GROUP_SIZE,
    Precision,
    SamplingModel,
    describe_model,
    describe_sampling,
    sample_missing,
)
from zigma_pl.evaluation.scores import (
    CLIP_SCORE,
    Features,
    ScoreOptions,
    Scores,
    by_features,
    check_counts,
    check_names,
    choose_scores,
    compute,
    known_scores,
)
from zigma_pl.evaluation.store import Chunk, SampleStore


@dataclass(frozen=True)
class ScoringOptions:
    """Options of scoring.

    Attributes:
        num_samples: number of images or clips to generate; 0 for no samples and no scores.
        metrics: names of scores (`zigma_pl.evaluation.scores.SCORES`, and those on `extractors`); None for those that
            need no downloads.
        extractors: your own feature extractors by name. The scores on "mine" are fid_mine, kid_mine, precision_mine and
            recall_mine; for clips frame_fid_mine, or fvd_mine if the extractor takes clips.
        split: split of the real images, and of the classes and captions used as conditions.
        batch_size: samples per batch on a GPU; always 16 on a CPU.
        extractor_weights: weight files of feature extractors by name, if they are not in the default folder.
        kid_num_subsets: number of subsets that KID is averaged over.
        kid_subset_size: samples per subset.
        num_neighbours: number of nearest neighbours that define the manifolds of precision and recall.
        samples_dir: folder of the samples.
        reference_folder: folder for features of real images; None for a folder in the user's cache folder.

    Raises:
        UserError: an option is out of range, or a score is unknown.
    """

    num_samples: int = 5000
    metrics: list[str] | None = None
    extractors: Mapping[str, FeatureExtractor] = field(default_factory=dict)
    split: Split = "test"
    batch_size: int = 64
    extractor_weights: Mapping[str, str] = field(default_factory=dict)
    kid_num_subsets: int = 100
    kid_subset_size: int = 1000
    num_neighbours: int = 3
    samples_dir: str | Path = "samples"
    reference_folder: str | Path | None = None

    def __post_init__(self) -> None:
        check_whole_numbers("scorer", batch_size=self.batch_size, num_neighbours=self.num_neighbours)
        check_whole_numbers("scorer", kid_num_subsets=self.kid_num_subsets)
        check_whole_numbers("scorer", least=0, num_samples=self.num_samples)
        check_whole_numbers("scorer", least=2, kid_subset_size=self.kid_subset_size)
        check_names(self.metrics or [], known_scores(self.extractors))

    @property
    def distances(self) -> ScoreOptions:
        """Options of KID, precision and recall."""
        return ScoreOptions(self.kid_num_subsets, self.kid_subset_size, self.num_neighbours)

    def scores_of(self, datamodule: ImageDataModule) -> Scores:
        """Return the scores to compute on these data, none without samples.

        Raises:
            UserError: a score does not apply to the data, or there are too few real or generated samples for it.
        """
        if not self.num_samples:
            return {}
        known, of_clips = known_scores(self.extractors), datamodule.num_frames is not None
        chosen = choose_scores(self.metrics, known, of_clips=of_clips, has_captions=datamodule.has_captions)
        if any(kind.distance != "captions" for kind in chosen.values()):
            check_counts(chosen, self.distances, len(RealPictures(datamodule, self.split)), self.num_samples)
        return chosen


class Scored(NamedTuple):
    """The result of scoring.

    scores: scores by name; with several processes, complete only on process 0.
    protocol: the model, and how samples were generated and compared, as plain values, for the record; with samples
        only on process 0.
    store: the samples; None if there are none.
    """

    scores: dict[str, ScoreValue]
    protocol: dict[str, Any]
    store: SampleStore | None


def score(
    model: SamplingModel,
    datamodule: ImageDataModule,
    options: ScoringOptions = ScoringOptions(),
    *,
    name: str = "samples",
    precision: Precision = Precision(),  # noqa: B008  frozen
) -> Scored:
    """Generate samples with a model, and compare them with the real images of a data set.

    Samples and features of real images are stored, so scoring again, or with more samples, only computes what is new.

    Args:
        model: the model, on its device and in evaluation mode, such as the `GenerativeModule` returned by
            `from_pretrained`.
        datamodule: provides the real images, and the encoders that the model was trained with.
        options: options of scoring.
        name: name of the subfolder of `options.samples_dir`.
        precision: precision of sampling.

    Raises:
        UserError: weights or images are missing, options do not fit the data, or sampling failed.
    """
    check_name(name, "name")
    weights = {"weights_sha256": hash_of_weights(model.backbone)}
    return Scoring(datamodule, options).score(model, weights, name, precision)


class Scoring:
    """Scores samples in several steps; every step must be called on all processes.

    Args:
        datamodule: provides the real images, and the encoders that the model was trained with.
        options: options of scoring.
        shows_progress: whether this process shows progress bars.

    Raises:
        UserError: weights of extractors or real images are missing, or a score does not apply to the data.
    """

    def __init__(self, datamodule: ImageDataModule, options: ScoringOptions, *, shows_progress: bool = False) -> None:
        self.datamodule = datamodule
        self.options = options
        self.shows_progress = shows_progress
        self._by_features = by_features(options.scores_of(datamodule))
        self._extractors = {features: self._build(features.extractor) for features in self._by_features}
        self._references: dict[Features, Reference] | None = None

    def _build(self, name: str) -> FeatureExtractor | ClipScore:
        if name in self.options.extractors:
            return self.options.extractors[name].to("cpu")  # loads its weights
        weights = self.options.extractor_weights.get(name)
        return ClipScore(weights) if name == CLIP_SCORE else build_extractor(name, weights)

    # --- real images --------------------------------------------------------------------------------------------------

    def load_references(self, device: torch.device) -> dict[Features, Reference]:
        """Load the features of the real images, or extract them on a device; called by `score` if needed."""
        if self._references is None:
            for extractor in self._extractors.values():
                extractor.to(device)
            of_pictures = {
                features: extractor
                for features, extractor in self._extractors.items()
                if isinstance(extractor, FeatureExtractor)
            }
            self._references = {name: self._reference(name, extractor) for name, extractor in of_pictures.items()}
        return self._references

    def _reference(self, features: Features, extractor: FeatureExtractor) -> Reference:
        pictures = RealPictures(self.datamodule, self.options.split)
        data = describe_real_pictures(self.datamodule, self.options.split, pictures)
        folder = self.options.reference_folder
        files = ReferenceFiles(
            default_reference_folder() if folder is None else Path(folder),
            *(data, extractor.fingerprint(), features.name),
            keeps_versions=features.extractor in self.options.extractors,
        )

        def make() -> FeatureSet:
            chunks = real_chunks(pictures, self.datamodule.num_workers, rank(), world_size())
            return self._extract(features, extractor, chunks, len(pictures), "real")

        return load_or_make(files, make, with_features=self._needs_each_sample(features))

    def _extract(
        self,
        features: Features,
        extractor: FeatureExtractor,
        chunks: Iterable[PictureChunk],
        num_samples: int,
        whose: str,
    ) -> FeatureSet:
        return extract(
            extractor,
            chunks,
            num_samples,
            num_frames=self.datamodule.num_frames if features.of == "frames" else None,
            keep=self._needs_each_sample(features),
            shown_as=f"{features.name} of {whose} {features.of}" if self.shows_progress else None,
        )

    def _needs_each_sample(self, features: Features) -> bool:
        return any(kind.needs_each_sample for kind in self._by_features[features].values())

    # --- samples ------------------------------------------------------------------------------------------------------

    def score(
        self,
        model: SamplingModel,
        weights: Mapping[str, Any],
        name: str,
        precision: Precision = Precision(),  # noqa: B008  frozen
        on_sampled: Callable[[int, int], None] | None = None,
    ) -> Scored:
        """Generate missing samples, and score all samples.

        Args:
            model: the model.
            weights: plain values that identify its weights; samples of different weights are stored separately.
            name: name of the subfolder of `samples_dir`.
            precision: precision of sampling.
            on_sampled: called with the number of samples done and the total number.

        Raises:
            UserError: sampling failed.
        """
        options = self.options
        if not options.num_samples:
            return Scored({}, describe_model(model, self.datamodule, precision.name), None)
        references = self.load_references(model.device)
        identity = describe_sampling(model, self.datamodule, options.split, precision.name)
        size = CPU_GROUP_SIZE if model.device.type == "cpu" else options.batch_size
        store = SampleStore(Path(options.samples_dir) / name, {**weights, **identity}, size)
        sample_missing(
            model,
            self.datamodule,
            options.split,
            store,
            options.num_samples,
            precision=precision,
            shows_progress=self.shows_progress,
            on_sampled=on_sampled,
        )
        scores: dict[str, ScoreValue] = {}
        for features, wanted in self._by_features.items():
            scores |= self._scores(features, wanted, store, references, model.device)
        protocol = self._protocol(store, references, identity) if rank() == 0 else {}
        return Scored(scores, protocol, store)

    def _scores(
        self,
        features: Features,
        wanted: Scores,
        store: SampleStore,
        references: Mapping[Features, Reference],
        device: torch.device,
    ) -> dict[str, ScoreValue]:
        extractor = self._extractors[features]
        chunks = self._own_chunks(store)
        if isinstance(extractor, ClipScore):
            return {CLIP_SCORE: self._clip_score(extractor, chunks)}
        fake = self._extract(features, extractor, chunks, self.options.num_samples, "sampled")
        if rank() != 0:
            return {}
        return compute(
            wanted,
            references[features],
            fake,
            self.options.distances,
            comparable=extractor.comparable,
            device=device if device.type == "cuda" else "cpu",  # other devices may not support float64
        )

    def _own_chunks(self, store: SampleStore) -> Iterator[Chunk]:
        for index in store.chunk_indices(self.options.num_samples, rank(), world_size()):
            yield store.read_first(index, self.options.num_samples)

    def _clip_score(self, extractor: ClipScore, chunks: Iterator[Chunk]) -> ScoreValue:
        extractor.reset()
        for chunk in chunks:
            ids = chunk.sample_ids.tolist()
            captions = self.datamodule.held_out_conditions(self.options.split, ids).captions
            assert captions is not None
            extractor.update(chunk.pictures, captions, chunk.sample_ids)
        return ScoreValue(value=float(extractor.compute()), comparable=extractor.comparable)

    def _protocol(
        self, store: SampleStore, references: Mapping[Features, Reference], identity: dict[str, Any]
    ) -> dict[str, Any]:
        num_real = [reference.num_real for reference in references.values()]
        return {
            **identity,
            "num_network_calls": store.num_network_calls(self.options.num_samples),
            "num_fake": self.options.num_samples,
            "num_real": max(num_real, default=None),
            "split": self.options.split,
            "resize": CROP,
            "reference_sha256": {features.name: kept.sha256 for features, kept in references.items()},
            "extractors": {features.name: used.fingerprint() for features, used in self._extractors.items()},
            **vars(self.options.distances),
            "samples_drawn_together": store.chunk_size,
            "samples": str(store.folder),
        }
