"""The headline and the summary of the report: which experiment of each table has the best score, and by how much."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from zigma_pl.suite.report.experiments import Experiment
from zigma_pl.suite.report.results import RecordCollection, RecordFile, data_of, is_paper_data
from zigma_pl.suite.report.scores import (
    LITE,
    LOSSES,
    ScoreLabel,
    base_name,
    figure,
    in_order,
    mean_and_spread,
    score_label,
)
from zigma_pl.suite.report.tables import COMPARED, Line, View

_NOT_RANKED = ("memory_gb", "gflops")
_LOSSES = tuple(reversed(LOSSES))  # the comparable one first
_LARGEST_LIST = 3  # pairs of experiments named in a sentence
PAPER_SCALE = "paper"


@dataclass(frozen=True)
class Ranked:
    """An experiment and the values of one score, one for each seed."""

    line: Line
    values: tuple[float, ...]

    @property
    def label(self) -> str:
        """Name of the experiment in its table."""
        return self.line.experiment.label

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return sum(self.values) / len(self.values)

    @property
    def text(self) -> str:
        """The score with the number of seeds, such as "957 ± 20 (3 seeds)"."""
        seeds = f" ({len(self.values)} seeds)" if len(self.values) > 1 else ""
        return mean_and_spread(self.values) + seeds


@dataclass(frozen=True)
class Ranking:
    """The experiments of a table at one scale, best first by one score; at least two."""

    score: ScoreLabel
    ranked: tuple[Ranked, ...]

    @property
    def best(self) -> Ranked:
        """The experiment with the best score."""
        return self.ranked[0]

    def is_better(self, one: float, other: float) -> bool:
        """Whether a value of the score is better than another."""
        return one < other if self.score.better == "lower" else one > other


def ranking(view: View, score: str | None = None) -> Ranking | None:
    """Rank the experiments of a view.

    Args:
        view: a table at one scale.
        score: name of the score; by default the first one that two experiments have, FID before others, and the
            losses only if there is no other: the velocity loss, then the validation loss.

    Returns: None if fewer than two experiments have the score, or if they were trained on different data.
    """
    if score is None:
        names = in_order([name for line in view.lines for result in line.results for name in result.record.scores])
        names = [name for name in names if name not in (*_NOT_RANKED, *_LOSSES)]
        names += _LOSSES
        return next((found for name in names if (found := ranking(view, name)) is not None), None)
    label = score_label(score)
    ranked = [
        Ranked(line, values) for line in view.lines if (values := tuple(_values(line.results, score))) and line.results
    ]
    if len(ranked) < 2 or len({data_of(result) for one in ranked for result in one.line.results}) > 1:
        return None
    return Ranking(label, tuple(sorted(ranked, key=lambda one: one.mean, reverse=label.better == "higher")))


def _values(results: Iterable[RecordFile], score: str) -> list[float]:
    values = [result.value(score) for result in results]
    return [value for value in values if value is not None and math.isfinite(value)]


def headline(place: str, found: Ranking, better: Sequence[tuple[str, Ranked]]) -> str:
    """Return one line on the main result.

    Args:
        place: where the experiments are, such as "in table 1".
        found: their ranking.
        better: better experiments of other tables and their tables.
    """
    best, last = found.best, found.ranked[-1]
    line = (
        f"{best.label} scores best {place}: {found.score.label} {figure(best.mean)}, against {figure(last.mean)} "
        f"for {last.label}"
    )
    if not better:
        return line
    other_table, other = better[0]
    return f"{line}. Better still: {other.label} of {other_table}, {figure(other.mean)}"


def finding(found: Ranking, view: View, others: Sequence[View], better: Sequence[tuple[str, Ranked]]) -> list[str]:
    """Return sentences on the best experiment of a table.

    Args:
        found: the ranking of `view`.
        view: the table at the scale that is summarised.
        others: the same table at other scales.
        better: better experiments of other tables and their tables.
    """
    best, second, last = found.best, found.ranked[1], found.ranked[-1]
    sentences = [f"{best.label} has the best {found.score.label}: {best.text}."]
    if len(found.ranked) > 2:
        sentences.append(f"Next is {second.label} with {second.text}, last {last.label} with {last.text}.")
    else:
        sentences.append(f"{second.label} has {second.text}.")
    sentences += [f"{other.label} of {table} is better: {other.text}." for table, other in better]
    sentences += [*_certainty(found), *_by_loss(found, view), *_paper_order(found), *_at_other_scales(found, others)]
    return sentences


def better_elsewhere(found: Ranking, others: Mapping[str, Ranking]) -> list[tuple[str, Ranked]]:
    """Return the best experiments of other tables that are better than that of a ranking, with their tables.

    Args:
        found: the ranking.
        others: rankings of other tables; those with another score or protocol are ignored.
    """
    comparable = {
        table: other.best
        for table, other in others.items()
        if other.score == found.score and _protocol(other.best) == _protocol(found.best)
    }
    return [(table, best) for table, best in comparable.items() if found.is_better(best.mean, found.best.mean)]


def _protocol(one: Ranked) -> tuple[object, ...]:
    """Return what must be equal to compare experiments of different tables."""
    result = one.line.results[0]
    protocol = result.record.protocol
    conditions = protocol.get("conditions") or {}
    return (
        result.record.scale,
        result.samples_seen,
        *(repr(protocol.get(name)) for name in ("data", *COMPARED)),
        *(repr(conditions.get(name)) for name in ("dataset", "items", "num_items")),
    )


def _certainty(found: Ranking) -> list[str]:
    """Say whether the seeds of the two best experiments overlap."""
    best, second = found.ranked[:2]
    if len(best.values) < 2 and len(second.values) < 2:
        return [f"{best.label} and {second.label} were trained with one seed each."]
    overlap = not all(found.is_better(one, other) for one in best.values for other in second.values)
    if overlap:
        return [f"Seeds of {best.label} and {second.label} overlap, so their order is open."]
    return [f"Every seed of {best.label} is better than every seed of {second.label}."]


def _by_loss(found: Ranking, view: View) -> list[str]:
    by_loss = next((by for name in _LOSSES if (by := ranking(view, name)) is not None), None)
    if by_loss is None or found.score.name in _LOSSES:
        return []
    lowest = by_loss.best
    also = "also " if lowest.line.experiment == found.best.line.experiment else ""
    return [f"{lowest.label} {also}has the lowest {by_loss.score.label}, {lowest.text}."]


def _paper_order(found: Ranking) -> list[str]:
    """Compare the order of the experiments with that of the published numbers of the same score."""
    name = base_name(found.score.name)
    published = {one.label: one.line.experiment.published.get(name) for one in found.ranked}
    known = {label: float(number) for label, number in published.items() if number is not None}
    labels = [one.label for one in found.ranked if one.label in known]
    if len(labels) < 2:
        return []
    swapped = [
        f"{worse} is better than {better}"
        for better, worse in combinations(labels, 2)  # better in our runs
        if found.is_better(known[worse], known[better])
    ]
    by_score = f"by {score_label(name).label}"
    if not swapped:
        return [f"The paper has the same order {by_score}."]
    if len(swapped) > _LARGEST_LIST:
        return [f"The order {by_score} differs from the paper in {len(swapped)} of {math.comb(len(labels), 2)} pairs."]
    otherwise = f"; otherwise its order {by_score} is the same" if len(swapped) < math.comb(len(labels), 2) else ""
    return [f"In the paper, {_listed(swapped)}{otherwise}."]


def _at_other_scales(found: Ranking, others: Sequence[View]) -> list[str]:
    scales: dict[str, list[str]] = {}
    for view in others:
        other = ranking(view)
        if other is not None and view.scale is not None:
            scales.setdefault(other.best.label, []).append(view.scale)
    return [
        f"{label} is {'also ' if label == found.best.label else ''}best at scale {_listed(names)}."
        for label, names in scales.items()
    ]


def overview(experiments: Sequence[Experiment], results: RecordCollection) -> list[str]:
    """Return sentences on all results: how many there are, at which scales, and on which data."""
    num_run = sum(bool(results.scales([experiment.name])) for experiment in experiments)
    sentences = [f"{num_run} of {len(experiments)} experiments were run."]
    scales = results.scales(experiment.name for experiment in experiments)
    if not scales:
        return sentences
    at = f"at scale{'s' if len(scales) > 1 else ''} {_listed(scales)}"
    not_paper = ", none at the scale of the paper" if PAPER_SCALE not in scales else ""
    sentences = [f"{num_run} of {len(experiments)} experiments were run {at}{not_paper}."]
    other_data = sorted({data_of(result) or "unknown data" for result in results.all if not is_paper_data(result)})
    if other_data:
        sentences.append(f"The images are {_listed(other_data)}, not the data sets of the paper.")
    if any(name.endswith(LITE) for result in results.all for name in result.record.scores):
        sentences.append(
            "Scores called lite use the features of a small network. They rank our own experiments and cannot be "
            "compared with published scores."
        )
    return sentences


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
