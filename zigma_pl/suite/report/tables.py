"""Tables with our scores beside the published ones, to be written as Markdown or HTML."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from zigma_pl.suite.report.experiments import Experiment
from zigma_pl.suite.report.results import RecordCollection, RecordFile, circumstances, seeds_of
from zigma_pl.suite.report.scores import LITE, NOT_RUN, NOT_SCORED, in_order, mean_and_spread, score_label

# Entries of the protocol that must be equal to compare experiments.
COMPARED = (
    *("sampler", "guidance", "num_network_calls", "weights", "precision", "image_size_px", "autoencoder", "split"),
    *("num_fake", "num_real", "resize", "reference_sha256", "extractors"),
    *("kid_num_subsets", "kid_subset_size", "num_neighbours"),
)
_ON_GFLOPS = (
    "Our GFLOPs include all operations of one call, including the scan, and count a multiply-add as two. The published "
    "ones were counted differently (docs/performance.md, Efficiency)."
)

Source = Literal["published", "ours", "training"]


@dataclass(frozen=True)
class Column:
    """A column after the name of the experiment.

    score: name of the score, or "samples_seen".
    """

    score: str
    source: Source

    @property
    def label(self) -> str:
        """Name of the score, and which direction is better."""
        return "samples seen" if self.source == "training" else score_label(self.score).heading

    @property
    def heading(self) -> str:
        """The label, and whether the numbers are ours or published."""
        return self.label if self.source == "training" else f"{self.label} {self.source}"


@dataclass(frozen=True)
class Line:
    """A row of the table: an experiment, its cells and its records, which are empty if it was not run."""

    experiment: Experiment
    cells: tuple[str, ...]
    results: tuple[RecordFile, ...]


@dataclass(frozen=True)
class View:
    """A table at one scale. `scale` is None if no experiment was run; it then has only published numbers."""

    scale: str | None
    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    remarks: tuple[str, ...]


def views(experiments: Sequence[Experiment], results: RecordCollection) -> list[View]:
    """Return a view for each scale at which any of the experiments was run."""
    scales = results.scales(experiment.name for experiment in experiments)
    return [_view(experiments, results, scale) for scale in scales] or [_view(experiments, results, None)]


def heading_of(experiments: Sequence[Experiment]) -> str:
    """Return the heading of a table, such as "Table 1: scan schemes on ..."."""
    about = experiments[0].about
    if about.table is None:
        return "Other experiments"
    heading = f"{about.table[0].upper()}{about.table[1:]}: {about.title}"
    return heading if about.paper else f"{heading} (not in the paper)"


def one_cell(experiment: Experiment, results: RecordCollection) -> str:
    """Return our scores of an experiment at its most meaningful scale: "h100: FID lite 459 ± 3 (3 seeds)"."""
    scales = results.scales([experiment.name])
    if not scales:
        return NOT_RUN
    found = results.of(experiment.name, scales[0])
    names = in_order([name for result in found for name in result.record.scores])
    scores = [f"{score_label(name).label} {_ours(found, name)}" for name in names]
    return f"{scales[0]}: {', '.join(scores)} ({seeds_of(found)})"


def _view(experiments: Sequence[Experiment], results: RecordCollection, scale: str | None) -> View:
    of_each = [tuple(results.of(experiment.name, scale)) if scale else () for experiment in experiments]
    together = [result for found in of_each for result in found]
    columns = _columns(experiments, together)
    lines = tuple(
        Line(experiment, tuple(_cell(column, experiment, found) for column in columns), found)
        for experiment, found in zip(experiments, of_each, strict=True)
    )
    title = f"Scale {scale}: {'; '.join(circumstances(together))}" if scale else f"{NOT_RUN.capitalize()} at any scale"
    return View(scale, title, columns, lines, _remarks(experiments, together))


def _columns(experiments: Sequence[Experiment], results: Sequence[RecordFile]) -> tuple[Column, ...]:
    """Return for each score the published column, ours, and ours on lite features, if there are such numbers."""
    published = {name for experiment in experiments for name in experiment.published}
    ours = {name for result in results for name in result.record.scores}
    ours |= {name for name in published if any(result.value(name) is not None for result in results)}
    columns: list[Column] = []
    for name in in_order([*published, *ours]):
        if name in published:
            columns.append(Column(name, "published"))
        if name in ours or (not results and name in published):
            columns.append(Column(name, "ours"))
    return (*columns, Column("samples_seen", "training")) if results else tuple(columns)


def _cell(column: Column, experiment: Experiment, results: Sequence[RecordFile]) -> str:
    if column.source == "published":
        return experiment.published.get(column.score, "")
    if not results:
        return NOT_RUN
    if column.source == "training":
        seen = {result.samples_seen for result in results if result.samples_seen is not None}
        return " and ".join(f"{number:,}" for number in sorted(seen)) or "unknown"
    return _ours(results, column.score)


def _ours(results: Sequence[RecordFile], score: str) -> str:
    values = [value for value in (result.value(score) for result in results) if value is not None]
    if not values:
        return NOT_SCORED
    short = len(values) < len(results)  # not all seeds have this score: state how many do
    return mean_and_spread(values) + (f" ({seeds_of(results[: len(values)])})" if short else "")


def _remarks(experiments: Sequence[Experiment], results: Sequence[RecordFile]) -> tuple[str, ...]:
    """Return remarks that a reader needs to compare the numbers."""
    papers = [experiment.about.paper for experiment in experiments if experiment.about.paper]
    protocols = dict.fromkeys(paper.protocol for paper in papers if paper.protocol)
    remarks = [f"Published numbers: {protocol}." for protocol in protocols]
    if any(name.endswith(LITE) for result in results for name in result.record.scores):
        remarks.append("Lite scores rank our own experiments; they cannot be compared with the published numbers.")
    others = {name for result in results for name, score in result.record.scores.items() if score.comparable is False}
    for name in in_order([name for name in others if not name.endswith(LITE)]):
        remarks.append(
            f"Our {score_label(name).label} cannot be compared with published ones: other weights or settings."
        )
    if any("gflops" in experiment.published for experiment in experiments):
        remarks.append(_ON_GFLOPS)
    seen = {result.samples_seen for result in results}
    if len(seen) > 1:
        remarks.append("The experiments were not all trained on the same number of samples.")
    if len({result.experiment for result in results}) < len(results):
        remarks.append("Several seeds: mean ± standard deviation.")
    for experiment in experiments:
        if experiment.about.table is None and experiment.about.title != experiment.label:
            remarks.append(f"{experiment.label}: {experiment.about.title}.")
    if experiments[0].about.table is not None and _differ(results):
        remarks.append(f"The protocols of the experiments differ in {', '.join(_differ(results))}.")
    return tuple(remarks)


def _differ(results: Sequence[RecordFile]) -> list[str]:
    """Return the entries of the protocol that differ between records; those without samples lack most of them."""
    protocols = [result.record.protocol for result in results]
    return [
        name.replace("_", " ")
        for name in COMPARED
        if len({repr(protocol.get(name)) for protocol in protocols if name in protocol}) > 1
    ]


def published_text(experiment: Experiment) -> str:
    """Return the published numbers of an experiment as text."""
    return ", ".join(f"{score_label(name).label} {number}" for name, number in experiment.published.items())
