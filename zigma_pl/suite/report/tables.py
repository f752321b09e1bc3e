"""A table of the paper, or one of ours, with our scores beside the published ones; Markdown and HTML are made of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from zigma_pl.suite.report.experiments import Experiment
from zigma_pl.suite.report.results import Result, Results, circumstances, seeds_of
from zigma_pl.suite.report.scores import LITE, NOT_RUN, NOT_SCORED, in_order, mean_and_spread, score_of

# Entries of the protocol that must be alike if experiments are compared.
_COMPARED = (
    *("sampler", "guidance", "num_network_calls", "weights", "precision", "image_size_px", "autoencoder", "split"),
    *("num_fake", "num_real", "resize", "reference_sha256", "extractors"),
    *("kid_num_subsets", "kid_subset_size", "num_neighbours"),
)
_ON_GFLOPS = (
    "Our GFLOPs are all operations of one call, those of the scan too, a multiply-add as two; the published ones were "
    "counted otherwise: docs/performance.md, Efficiency."
)

Source = Literal["published", "ours", "training"]


@dataclass(frozen=True)
class Column:
    """A column after the experiment's name.

    score: name of the score, or "samples_seen" of training.
    """

    score: str
    source: Source

    @property
    def label(self) -> str:
        """What it shows, and which direction is better."""
        return "samples seen" if self.source == "training" else score_of(self.score).heading

    @property
    def heading(self) -> str:
        """The label, and whose numbers they are."""
        return self.label if self.source == "training" else f"{self.label} {self.source}"


@dataclass(frozen=True)
class Line:
    """An experiment: its cells, and the records that ours are from; none where it was not run."""

    experiment: Experiment
    cells: tuple[str, ...]
    results: tuple[Result, ...]


@dataclass(frozen=True)
class View:
    """A table at one scale, or, with `scale` None, the published numbers of a table that was not run at any."""

    scale: str | None
    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    remarks: tuple[str, ...]


def views(experiments: Sequence[Experiment], results: Results) -> list[View]:
    """Return a table's views, one for each scale at which any of its experiments was run."""
    scales = results.scales(experiment.name for experiment in experiments)
    return [_view(experiments, results, scale) for scale in scales] or [_view(experiments, results, None)]


def heading_of(experiments: Sequence[Experiment]) -> str:
    """Return the heading of a table, such as "Table 1: scan schemes on ..."."""
    about = experiments[0].about
    if about.table is None:
        return "Rows of no table"
    heading = f"{about.table[0].upper()}{about.table[1:]}: {about.title}"
    return heading if about.paper else f"{heading} (not in the paper)"


def one_cell(experiment: Experiment, results: Results) -> str:
    """Return our scores of an experiment at the scale that says most: "h100: FID lite 459 ± 3 (3 seeds)"."""
    scales = results.scales([experiment.name])
    if not scales:
        return NOT_RUN
    found = results.of(experiment.name, scales[0])
    names = in_order([name for result in found for name in result.record.scores])
    scores = [f"{score_of(name).label} {_ours(found, name)}" for name in names]
    return f"{scales[0]}: {', '.join(scores)} ({seeds_of(found)})"


def _view(experiments: Sequence[Experiment], results: Results, scale: str | None) -> View:
    of_each = [tuple(results.of(experiment.name, scale)) if scale else () for experiment in experiments]
    together = [result for found in of_each for result in found]
    columns = _columns(experiments, together)
    lines = tuple(
        Line(experiment, tuple(_cell(column, experiment, found) for column in columns), found)
        for experiment, found in zip(experiments, of_each, strict=True)
    )
    title = f"Scale {scale}: {'; '.join(circumstances(together))}" if scale else f"{NOT_RUN.capitalize()} at any scale"
    return View(scale, title, columns, lines, _remarks(experiments, together))


def _columns(experiments: Sequence[Experiment], results: Sequence[Result]) -> tuple[Column, ...]:
    """Return for each score the published column, ours, and ours on lite features, as far as there are such numbers."""
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


def _cell(column: Column, experiment: Experiment, results: Sequence[Result]) -> str:
    if column.source == "published":
        return experiment.published.get(column.score, "")
    if not results:
        return NOT_RUN
    if column.source == "training":
        seen = {result.samples_seen for result in results if result.samples_seen is not None}
        return " and ".join(f"{number:,}" for number in sorted(seen)) or "not stated"
    return _ours(results, column.score)


def _ours(results: Sequence[Result], score: str) -> str:
    values = [value for value in (result.value(score) for result in results) if value is not None]
    if not values:
        return NOT_SCORED
    short = len(values) < len(results)  # some seed lacks it: a mean says of how many
    return mean_and_spread(values) + (f" ({seeds_of(results[: len(values)])})" if short else "")


def _remarks(experiments: Sequence[Experiment], results: Sequence[Result]) -> tuple[str, ...]:
    """Return what a reader has to know before comparing."""
    papers = [experiment.about.paper for experiment in experiments if experiment.about.paper]
    protocols = dict.fromkeys(paper.protocol for paper in papers if paper.protocol)
    remarks = [f"Published numbers: {protocol}." for protocol in protocols]
    if any(name.endswith(LITE) for result in results for name in result.record.scores):
        remarks.append("Scores on lite features rank our own rows; they cannot be set against the published numbers.")
    others = {name for result in results for name, score in result.record.scores.items() if score.comparable is False}
    for name in in_order([name for name in others if not name.endswith(LITE)]):
        remarks.append(f"Our {score_of(name).label} is not comparable with published ones: other weights or settings.")
    if any("gflops" in experiment.published for experiment in experiments):
        remarks.append(_ON_GFLOPS)
    seen = {result.samples_seen for result in results}
    if len(seen) > 1:
        remarks.append("Not all rows have seen the same number of samples.")
    if len({result.experiment for result in results}) < len(results):
        remarks.append("Several seeds: mean ± standard deviation.")
    for experiment in experiments:
        if experiment.about.table is None:
            remarks.append(f"{experiment.label}: {experiment.about.title}.")
    if experiments[0].about.table is not None and _differ(results):
        remarks.append(f"The rows were not scored alike: they differ in {', '.join(_differ(results))}.")
    return tuple(remarks)


def _differ(results: Sequence[Result]) -> list[str]:
    """Return the entries of the protocol that are not the same in all records."""
    return [
        name.replace("_", " ")
        for name in _COMPARED
        if len({repr(result.record.protocol.get(name)) for result in results}) > 1
    ]


def published_text(experiment: Experiment) -> str:
    """Return the published numbers of an experiment in words."""
    return ", ".join(f"{score_of(name).label} {number}" for name, number in experiment.published.items())
