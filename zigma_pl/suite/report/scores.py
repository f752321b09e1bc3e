"""What scores are called, which way is better, and how they are written."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

NOT_RUN = "not run"
NOT_SCORED = "not scored"
LITE = "_lite"
LITE_WARNING = "lite features, not comparable with published FID"

Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Score:
    """A score of the result records: its name there, and how a table heads it."""

    name: str
    label: str
    better: Better = "lower"

    @property
    def heading(self) -> str:
        """The label and the direction that is better."""
        return f"{self.label} {'↓' if self.better == 'lower' else '↑'}"


_OF_RECORDS = (
    Score("validation_loss", "validation loss"),
    Score("fid", "FID"),
    Score("sfid", "sFID"),
    Score("fdd", "FDD"),
    Score("kid", "KID"),
    Score("frame_fid", "frame-FID"),
    Score("fvd", "FVD"),
    Score("precision", "precision", "higher"),
    Score("recall", "recall", "higher"),
    Score("clip_score", "CLIP score", "higher"),
    Score("memory_gb", "memory GB"),
    Score("gflops", "GFLOPs"),
)
SCORES = {score.name: score for score in _OF_RECORDS}
PUBLISHED_NAMES = {score.label: score.name for score in _OF_RECORDS[1:]}  # what a row's header may call them


def score_of(name: str) -> Score:
    """Return how a score of a record is shown: fid_lite, on features of "lite", as FID lite; a new one by its name."""
    known = _known(name)
    if known is None:
        return Score(name, name.replace("_", " "))
    return Score(name, known.label + name.removeprefix(known.name).replace("_", " "), known.better)


def in_order(names: Sequence[str]) -> list[str]:
    """Return each name once: known scores in the order above, each before those on other features, then the others."""
    order = list(_OF_RECORDS)
    known = {name: score for name in names if (score := _known(name)) is not None}
    of_known = sorted(known, key=lambda name: (order.index(known[name]), name != known[name].name))
    return of_known + sorted(set(names) - set(known))


def _known(name: str) -> Score | None:
    """Return the score that a name stands for by itself or with the name of an extractor behind it."""
    return next((score for score in _OF_RECORDS if name == score.name or name.startswith(f"{score.name}_")), None)


def figure(value: float, digits: int = 4) -> str:
    """Write a number with so many digits that count, without an exponent."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(max(decimals, 0), 6)}f}"


def mean_and_spread(values: Sequence[float]) -> str:
    """Write one value, or the mean of several seeds with their standard deviation."""
    if len(values) == 1 or not all(map(math.isfinite, values)):
        return figure(sum(values) / len(values))
    mean = sum(values) / len(values)
    # Products become infinite where powers would raise OverflowError.
    deviation = math.sqrt(sum((value - mean) * (value - mean) for value in values) / (len(values) - 1))
    decimals = len(figure(mean).partition(".")[2])
    return f"{mean:.{decimals}f} ± {deviation:.{decimals}f}"
