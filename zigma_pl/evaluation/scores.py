"""The available scores, their features, and their computation."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from zigma_pl.core.errors import UserError
from zigma_pl.evaluation.features import FeatureSet
from zigma_pl.evaluation.metrics.extractors import EXTRACTORS, FeatureExtractor
from zigma_pl.evaluation.metrics.frechet import frechet_distance
from zigma_pl.evaluation.metrics.kernel_distance import kernel_distance
from zigma_pl.evaluation.metrics.precision_recall import precision_recall
from zigma_pl.evaluation.record import ScoreValue
from zigma_pl.evaluation.reference import Reference

Distance = Literal["frechet", "kernel", "precision", "recall", "captions"]
SeenAs = Literal["pictures", "frames", "clips"]

CLIP_SCORE = "clip_score"
_NEED_DOWNLOADS = {CLIP_SCORE, *EXTRACTORS} - {"lite"}


@dataclass(frozen=True)
class Features:
    """The features of a score: the extractor, and the kind of its input."""

    extractor: str
    of: SeenAs = "pictures"

    @property
    def name(self) -> str:
        """Name in files and records."""
        return f"{self.extractor}-frames" if self.of == "frames" else self.extractor


@dataclass(frozen=True)
class ScoreKind:
    """The definition of a score: its features, and the distance computed from them."""

    features: Features
    distance: Distance

    @property
    def needs_each_sample(self) -> bool:
        """Whether the score needs all features, not only their statistics."""
        return self.distance != "frechet"


Scores = dict[str, ScoreKind]
"""Scores by name."""


def scores_on(extractor: str, takes: Literal["images", "clips"] = "images") -> Scores:
    """Return the scores on an extractor's features; their names end with the extractor's name."""
    if takes == "clips":
        return {f"fvd_{extractor}": ScoreKind(Features(extractor, "clips"), "frechet")}
    return {
        f"fid_{extractor}": ScoreKind(Features(extractor), "frechet"),
        f"kid_{extractor}": ScoreKind(Features(extractor), "kernel"),
        f"precision_{extractor}": ScoreKind(Features(extractor), "precision"),
        f"recall_{extractor}": ScoreKind(Features(extractor), "recall"),
        f"frame_fid_{extractor}": ScoreKind(Features(extractor, "frames"), "frechet"),
    }


SCORES: Scores = {
    "fid": ScoreKind(Features("inception"), "frechet"),
    "sfid": ScoreKind(Features("inception_spatial"), "frechet"),
    "kid": ScoreKind(Features("inception"), "kernel"),
    "precision": ScoreKind(Features("inception"), "precision"),
    "recall": ScoreKind(Features("inception"), "recall"),
    "fdd": ScoreKind(Features("dinov2"), "frechet"),
    "fvd": ScoreKind(Features("i3d", "clips"), "frechet"),
    "frame_fid": ScoreKind(Features("inception", "frames"), "frechet"),
    "clip_score": ScoreKind(Features(CLIP_SCORE), "captions"),
    **scores_on("lite"),
}


@dataclass(frozen=True)
class ScoreOptions:
    """Options of KID, precision and recall."""

    kid_num_subsets: int
    kid_subset_size: int
    num_neighbours: int


def known_scores(extractors: Mapping[str, FeatureExtractor]) -> Scores:
    """Return all scores by name, including those on additional extractors.

    Raises:
        UserError: the name of an extractor is already used, or is not an identifier.
    """
    known = dict(SCORES)
    for name, extractor in extractors.items():
        if name in EXTRACTORS or name == CLIP_SCORE or not name.isidentifier():
            raise UserError(
                f"scorer.extractors: {name!r} is not a valid name: use letters, digits and _, but none of "
                f"{', '.join(EXTRACTORS)}, {CLIP_SCORE}"
            )
        known |= scores_on(name, extractor.takes)
    return known


def choose_scores(names: Sequence[str] | None, known: Scores, *, of_clips: bool, has_captions: bool) -> Scores:
    """Return the scores to compute.

    Args:
        names: names of the scores; None for those without downloads, on `lite` and on additional extractors.
        known: result of `known_scores`.
        of_clips: whether the data are clips.
        has_captions: whether the data have captions.

    Raises:
        UserError: a name is unknown, or its score does not apply to the data.
    """
    suited = {name: kind for name, kind in known.items() if (kind.features.of != "pictures") == of_clips}
    if not has_captions:
        suited.pop(CLIP_SCORE, None)
    if names is None:
        return {name: kind for name, kind in suited.items() if kind.features.extractor not in _NEED_DOWNLOADS}
    check_names(names, known)
    for name in names:
        if name not in suited:
            what = "clips" if of_clips else "images"
            captions = "" if has_captions else " without captions"
            raise UserError(
                f"scorer.metrics: {name} does not apply to {what}{captions}: choose from {', '.join(sorted(suited))}"
            )
    return {name: suited[name] for name in names}


def check_names(names: Iterable[str], known: Scores) -> None:
    """Raise a UserError for an unknown score."""
    for name in names:
        if name not in known:
            raise UserError(f"scorer.metrics: unknown score '{name}': choose from {', '.join(known)}")


def check_counts(scores: Scores, options: ScoreOptions, num_real: int, num_fake: int) -> None:
    """Raise a UserError, before sampling, if there are too few samples for a score."""
    fewest = min(num_real, num_fake)
    for name, kind in scores.items():
        distance = kind.distance
        if distance == "frechet" and fewest < 2:
            raise UserError(f"{name} needs at least 2 real and 2 generated samples, got {num_real} and {num_fake}")
        if distance == "kernel" and options.kid_subset_size > fewest:
            raise UserError(
                f"{name} needs at least {options.kid_subset_size} samples for its subsets, got {num_real} real and "
                f"{num_fake} generated: set scorer.kid_subset_size to at most {fewest}"
            )
        if distance in ("precision", "recall") and fewest <= options.num_neighbours:
            raise UserError(
                f"{name} needs more than {options.num_neighbours} samples, got {num_real} real and {num_fake} "
                f"generated: raise scorer.num_samples, or remove {name} from scorer.metrics"
            )


def by_features(scores: Scores) -> dict[Features, Scores]:
    """Group the scores by their features."""
    groups: dict[Features, Scores] = {}
    for name, kind in scores.items():
        groups.setdefault(kind.features, {})[name] = kind
    return groups


def compute(
    wanted: Scores,
    real: Reference,
    fake: FeatureSet,
    options: ScoreOptions,
    *,
    comparable: bool,
    device: torch.device | str = "cpu",
) -> dict[str, ScoreValue]:
    """Compute the scores on one kind of features.

    Args:
        wanted: the scores.
        real, fake: features of real and generated samples.
        options: options of KID, precision and recall.
        comparable: whether the features are those of published scores.
        device: device for pairwise comparisons in float64; 5,000 with 6,000 samples take a minute on two cores.
    """
    scores: dict[str, ScoreValue] = {}
    manifold: Mapping[str, float] | None = None
    pair = (real.features, fake.features)
    each_real, each_fake = (None if features is None else features.to(device) for features in pair)
    for name, kind in wanted.items():
        distance, std = kind.distance, None
        if distance == "frechet":
            value = frechet_distance(real.statistics, fake.statistics)
        else:
            assert each_real is not None
            assert each_fake is not None
            if distance == "kernel":
                value, std = kernel_distance(each_real, each_fake, options.kid_num_subsets, options.kid_subset_size)
            else:
                manifold = manifold or precision_recall(each_real, each_fake, options.num_neighbours)._asdict()
                value = manifold[distance]
        scores[name] = ScoreValue(value=value, comparable=comparable, std=std)
    return scores
