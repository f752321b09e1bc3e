"""Labels of scores, which direction is better, and how numbers are formatted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

NOT_RUN = "not run"
NOT_SCORED = "not scored"
LITE = "_lite"
LITE_WARNING = "lite features, not comparable with published scores"

Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class ScoreLabel:
    """The name of a score in the records, and its label in tables."""

    name: str
    label: str
    better: Better = "lower"

    @property
    def heading(self) -> str:
        """The label with an arrow for the better direction."""
        return f"{self.label} {'↓' if self.better == 'lower' else '↑'}"


# The validation loss depends on the objective; the velocity loss can be compared between objectives.
LOSSES = {"validation_loss": "validation loss", "velocity_loss": "velocity loss"}

_OF_RECORDS = (
    *(ScoreLabel(name, label) for name, label in LOSSES.items()),
    ScoreLabel("fid", "FID"),
    ScoreLabel("sfid", "sFID"),
    ScoreLabel("fdd", "FDD"),
    ScoreLabel("kid", "KID"),
    ScoreLabel("frame_fid", "frame-FID"),
    ScoreLabel("fvd", "FVD"),
    ScoreLabel("precision", "precision", "higher"),
    ScoreLabel("recall", "recall", "higher"),
    ScoreLabel("clip_score", "CLIP score", "higher"),
    ScoreLabel("memory_gb", "memory GB"),
    ScoreLabel("gflops", "GFLOPs"),
)
# Names allowed in `about:` blocks.
PUBLISHED_NAMES = {score.label: score.name for score in _OF_RECORDS if score.name not in LOSSES}


def score_label(name: str) -> ScoreLabel:
    """Return the label of a score, such as "FID lite" for fid_lite; an unknown score is labelled with its name."""
    known = _known(name)
    if known is None:
        return ScoreLabel(name, name.replace("_", " "))
    return ScoreLabel(name, known.label + name.removeprefix(known.name).replace("_", " "), known.better)


def in_order(names: Sequence[str]) -> list[str]:
    """Return the names without duplicates: known scores in the order above, then unknown ones."""
    order = list(_OF_RECORDS)
    known = {name: score for name in names if (score := _known(name)) is not None}
    of_known = sorted(known, key=lambda name: (order.index(known[name]), name != known[name].name))
    return of_known + sorted(set(names) - set(known))


def _known(name: str) -> ScoreLabel | None:
    """Return the known score with this name, without the suffix of a feature extractor."""
    return next((score for score in _OF_RECORDS if name == score.name or name.startswith(f"{score.name}_")), None)


def base_name(name: str) -> str:
    """Return the name of a score without the suffix of a feature extractor: "fid" for fid_lite."""
    known = _known(name)
    return name if known is None else known.name


def figure(value: float, digits: int = 4) -> str:
    """Format a number with `digits` significant digits and without an exponent."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(max(decimals, 0), 6)}f}"


def mean_and_spread(values: Sequence[float]) -> str:
    """Format one value, or the mean and standard deviation of several seeds."""
    if len(values) == 1 or not all(map(math.isfinite, values)):
        return figure(sum(values) / len(values))
    mean = sum(values) / len(values)
    # Products overflow to infinity; powers would raise OverflowError.
    deviation = math.sqrt(sum((value - mean) * (value - mean) for value in values) / (len(values) - 1))
    decimals = len(figure(mean).partition(".")[2])
    return f"{mean:.{decimals}f} ± {deviation:.{decimals}f}"
