"""The scores by name: on which features each is, and how it is computed from them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from zigma_pl.core.errors import UserError
from zigma_pl.evaluation.features import FeatureSet
from zigma_pl.evaluation.metrics.frechet import frechet_distance
from zigma_pl.evaluation.metrics.kernel_distance import kernel_distance
from zigma_pl.evaluation.metrics.precision_recall import precision_recall
from zigma_pl.evaluation.record import Score
from zigma_pl.evaluation.reference import Reference

Distance = Literal["frechet", "kernel", "precision", "recall", "captions"]
SeenAs = Literal["pictures", "frames", "clips"]

CLIP_SCORE = "clip_score"


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


SCORES: dict[str, ScoreKind] = {
    "fid": ScoreKind(Features("inception"), "frechet"),
    "sfid": ScoreKind(Features("inception_spatial"), "frechet"),
    "kid": ScoreKind(Features("inception"), "kernel"),
    "precision": ScoreKind(Features("inception"), "precision"),
    "recall": ScoreKind(Features("inception"), "recall"),
    "fdd": ScoreKind(Features("dinov2"), "frechet"),
    "fvd": ScoreKind(Features("i3d", "clips"), "frechet"),
    "frame_fid": ScoreKind(Features("inception", "frames"), "frechet"),
    "clip_score": ScoreKind(Features(CLIP_SCORE), "captions"),
    "fid_lite": ScoreKind(Features("lite"), "frechet"),
    "kid_lite": ScoreKind(Features("lite"), "kernel"),
    "precision_lite": ScoreKind(Features("lite"), "precision"),
    "recall_lite": ScoreKind(Features("lite"), "recall"),
    "frame_fid_lite": ScoreKind(Features("lite", "frames"), "frechet"),
}
DEFAULT_OF_PICTURES = ("fid_lite", "kid_lite", "precision_lite", "recall_lite")
DEFAULT_OF_CLIPS = ("frame_fid_lite",)


@dataclass(frozen=True)
class ScoreOptions:
    """Numbers that KID, precision and recall depend on."""

    kid_num_subsets: int
    kid_subset_size: int
    num_neighbours: int


def choose_scores(names: Sequence[str] | None, *, of_clips: bool, has_captions: bool) -> list[str]:
    """Return the names of the scores to compute, the default ones for None.

    Raises:
        UserError: a name is unknown, or its score does not suit the data.
    """
    if names is None:
        return list(DEFAULT_OF_CLIPS if of_clips else DEFAULT_OF_PICTURES)
    check_names(names)
    suited = {name for name, kind in SCORES.items() if (kind.features.of != "pictures") == of_clips}
    suited -= set() if has_captions else {CLIP_SCORE}
    for name in names:
        if name not in suited:
            what = "clips" if of_clips else "pictures"
            captions = "" if has_captions else " without captions"
            raise UserError(
                f"scorer.metrics: {name} is no score of {what}{captions}; choose of {', '.join(sorted(suited))}"
            )
    return list(dict.fromkeys(names))


def check_names(names: Iterable[str]) -> None:
    """Raise UserError for a score that there is none of."""
    for name in names:
        if name not in SCORES:
            raise UserError(f"scorer.metrics: unknown score '{name}', choose of {', '.join(SCORES)}")


def check_counts(names: Sequence[str], options: ScoreOptions, num_real: int, num_fake: int) -> None:
    """Raise UserError, before anything is sampled, when there are too few samples for a score."""
    fewest = min(num_real, num_fake)
    for name in names:
        distance = SCORES[name].distance
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


def by_features(names: Sequence[str]) -> dict[Features, list[str]]:
    """Return the scores on each kind of features."""
    groups: dict[Features, list[str]] = {}
    for name in names:
        groups.setdefault(SCORES[name].features, []).append(name)
    return groups


def compute(
    names: Sequence[str],
    real: Reference,
    fake: FeatureSet,
    options: ScoreOptions,
    *,
    comparable: bool,
    device: torch.device | str = "cpu",
) -> dict[str, Score]:
    """Return the scores of one kind of features.

    Args:
        names: of the scores.
        real, fake: the features.
        options: what KID, precision and recall depend on.
        comparable: whether the features are those of published scores.
        device: where samples are compared one by one, in float64: 5,000 with 6,000 take a minute on two cores.
    """
    scores: dict[str, Score] = {}
    manifold: Mapping[str, float] | None = None
    pair = (real.features, fake.features)
    each_real, each_fake = (None if features is None else features.to(device) for features in pair)
    for name in names:
        distance, std = SCORES[name].distance, None
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
