"""The scores by name: on which features each is, and how it is computed from them."""

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
from zigma_pl.evaluation.record import Score
from zigma_pl.evaluation.reference import Reference

Distance = Literal["frechet", "kernel", "precision", "recall", "captions"]
SeenAs = Literal["pictures", "frames", "clips"]

CLIP_SCORE = "clip_score"
_NEED_DOWNLOADS = {CLIP_SCORE, *EXTRACTORS} - {"lite"}


@dataclass(frozen=True)
class Features:
    """Features that a score is on: which extractor, and what it is shown."""

    extractor: str
    of: SeenAs = "pictures"

    @property
    def name(self) -> str:
        """Name for files and records."""
        return f"{self.extractor}-frames" if self.of == "frames" else self.extractor


@dataclass(frozen=True)
class ScoreKind:
    """A score: its features, and what is computed from them."""

    features: Features
    distance: Distance

    @property
    def needs_each_sample(self) -> bool:
        """Whether the statistics of the features are not enough."""
        return self.distance != "frechet"


Scores = dict[str, ScoreKind]
"""Scores by name."""


def scores_on(extractor: str, takes: Literal["images", "clips"] = "images") -> Scores:
    """Return the scores on the features of an extractor whose name they end with."""
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
    """Numbers that KID, precision and recall depend on."""

    kid_num_subsets: int
    kid_subset_size: int
    num_neighbours: int


def known_scores(extractors: Mapping[str, FeatureExtractor]) -> Scores:
    """Return all scores by name, those on the features of further extractors too.

    Raises:
        UserError: an extractor has a name that is taken, or that cannot be part of a file's name.
    """
    known = dict(SCORES)
    for name, extractor in extractors.items():
        if name in EXTRACTORS or name == CLIP_SCORE or not name.isidentifier():
            raise UserError(
                f"scorer.extractors: {name!r} cannot be the name of an extractor of your own: use letters, digits and "
                f"_, and none of {', '.join(EXTRACTORS)}, {CLIP_SCORE}"
            )
        known |= scores_on(name, extractor.takes)
    return known


def choose_scores(names: Sequence[str] | None, known: Scores, *, of_clips: bool, has_captions: bool) -> Scores:
    """Return the scores to compute; for None those that need no downloads: on `lite` and on further extractors.

    Args:
        names: of the scores.
        known: what `known_scores` returned.
        of_clips: whether the data are clips.
        has_captions: whether they have captions.

    Raises:
        UserError: a name is unknown, or its score does not suit the data.
    """
    suited = {name: kind for name, kind in known.items() if (kind.features.of != "pictures") == of_clips}
    if not has_captions:
        suited.pop(CLIP_SCORE, None)
    if names is None:
        return {name: kind for name, kind in suited.items() if kind.features.extractor not in _NEED_DOWNLOADS}
    check_names(names, known)
    for name in names:
        if name not in suited:
            what = "clips" if of_clips else "pictures"
            captions = "" if has_captions else " without captions"
            raise UserError(
                f"scorer.metrics: {name} is no score of {what}{captions}; choose of {', '.join(sorted(suited))}"
            )
    return {name: suited[name] for name in names}


def check_names(names: Iterable[str], known: Scores) -> None:
    """Raise UserError for a score that there is none of."""
    for name in names:
        if name not in known:
            raise UserError(f"scorer.metrics: unknown score '{name}', choose of {', '.join(known)}")


def check_counts(scores: Scores, options: ScoreOptions, num_real: int, num_fake: int) -> None:
    """Raise UserError, before anything is sampled, when there are too few samples for a score."""
    fewest = min(num_real, num_fake)
    for name, kind in scores.items():
        distance = kind.distance
        if distance == "frechet" and fewest < 2:
            raise UserError(f"{name}: needs at least 2 real and 2 generated samples, got {num_real} and {num_fake}")
        if distance == "kernel" and options.kid_subset_size > fewest:
            raise UserError(
                f"{name}: subsets of {options.kid_subset_size} need as many samples, but there are {num_real} real and "
                f"{num_fake} generated ones: set scorer.kid_subset_size to at most {fewest}"
            )
        if distance in ("precision", "recall") and fewest <= options.num_neighbours:
            raise UserError(
                f"{name}: needs more than {options.num_neighbours} samples, but there are {num_real} real and "
                f"{num_fake} generated ones: raise scorer.num_samples, or leave {name} out of scorer.metrics"
            )


def by_features(scores: Scores) -> dict[Features, Scores]:
    """Return the scores on each kind of features."""
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
) -> dict[str, Score]:
    """Return the scores of one kind of features.

    Args:
        wanted: the scores.
        real, fake: the features.
        options: what KID, precision and recall depend on.
        comparable: whether the features are those of published scores.
        device: where samples are compared one by one, in float64: 5,000 with 6,000 take a minute on two cores.
    """
    scores: dict[str, Score] = {}
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
        scores[name] = Score(value=value, comparable=comparable, std=std)
    return scores
