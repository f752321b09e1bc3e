"""The report: a static HTML page with tables, curves, samples and the protocol of each number."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from zigma_pl.core.files import remove_leftovers, written_whole
from zigma_pl.scan.paths import adjacency, named_orders
from zigma_pl.suite.report import gallery
from zigma_pl.suite.report.assets import Assets, new_assets
from zigma_pl.suite.report.charts import DARK, LIGHT, Chart, path_chart
from zigma_pl.suite.report.experiments import NOTHING, Experiment, by_table
from zigma_pl.suite.report.figures import NUM_PARTS, charts
from zigma_pl.suite.report.markdown import note_on
from zigma_pl.suite.report.results import RecordCollection, RecordFile
from zigma_pl.suite.report.scores import NOT_RUN, NOT_SCORED
from zigma_pl.suite.report.tables import Column, Line, View, heading_of, published_text, views

TITLE = "zigma_pl: results"
_PATH_SIDE = 8  # tokens


def write_report(experiments: Sequence[Experiment], results: RecordCollection, folder: Path, page: Path) -> None:
    """Write the page and the folder "assets" beside it.

    An interrupted report leaves the earlier page and its assets intact.

    Args:
        experiments, results: content of the page.
        folder: folder of the records and of the notes on tables.
        page: the HTML file; an earlier report is replaced.
    """
    with new_assets(page.parent / "assets") as assets:
        remove_leftovers(page)
        text = _Report(results, folder, assets).render(experiments)
        with written_whole(page) as file:
            file.write(text.encode())


@dataclass(frozen=True)
class _Report:
    """Fills the template, and copies the files that it links to into the assets."""

    results: RecordCollection
    folder: Path
    assets: Assets

    def render(self, experiments: Sequence[Experiment]) -> str:
        """Return the HTML."""
        environment = Environment(
            loader=PackageLoader("zigma_pl.suite.report"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        return environment.get_template("page.html").render(
            title=TITLE,
            num_run=sum(bool(self.results.scales([experiment.name])) for experiment in experiments),
            num_experiments=len(experiments),
            num_records=len(self.results.all),
            date=datetime.now(UTC).strftime("%Y-%m-%d"),
            sections=[self._section(table, of_table) for table, of_table in by_table(experiments).items()],
            paths=[self._chart(chart, "paths") for chart in _path_charts()],
            light=LIGHT,
            dark=DARK,
            num_colours=len(LIGHT),
            num_parts=NUM_PARTS,
            not_run=NOT_RUN,
            cell_class=_cell_class,
        )

    def _section(self, table: str | None, experiments: list[Experiment]) -> dict[str, Any]:
        scales = self.results.scales(experiment.name for experiment in experiments)
        run = [
            f"{sum(bool(self.results.of(experiment.name, scale)) for experiment in experiments)} experiments at {scale}"
            for scale in scales
        ]
        return {
            "anchor": (table or "other experiments").replace(" ", "-"),
            "heading": heading_of(experiments),
            "summary": f"{', '.join(run) or NOT_RUN}; {len(experiments)} in all",
            "addresses": {
                experiment.name: self.assets.copy(experiment.file, f"experiments/{experiment.file.name}")
                for experiment in experiments
            },
            "views": [self._view(table, view) for view in views(experiments, self.results)],
        }

    def _view(self, table: str | None, view: View) -> dict[str, Any]:
        note = note_on(self.folder, view.scale, table)
        subfolder = f"{(table or 'none').replace(' ', '')}/{view.scale}"
        return {
            "scale": view.scale,
            "title": view.title,
            "columns": view.columns,
            "remarks": view.remarks,
            "lines": [self._line(line, view) for line in view.lines],
            "note": None if note is None else _from_markdown(note),
            "charts": [self._chart(chart, subfolder) for chart in charts(view, self.results)] if view.scale else [],
            "samples": list(gallery.samples(view, self.assets)) if view.scale else [],
        }

    def _line(self, line: Line, view: View) -> dict[str, Any]:
        seeds = ["record"] if len(line.results) == 1 else [f"seed {result.seed}" for result in line.results]
        return {
            "experiment": line.experiment,
            "cells": line.cells,
            "addresses": [self._record(text, result) for text, result in zip(seeds, line.results, strict=True)],
            "about": _about(line.experiment),
            "records": [
                {
                    "parts": _parts(result),
                    "previews": list(gallery.previews(result, line.experiment.label, self.assets)),
                }
                for result in line.results
            ],
            "others": [
                self._record(f"{of.samples_seen:,} samples, seed {of.seed}", of, f"{of.samples_seen}/")
                for of in self._others(line, view)
            ],
        }

    def _others(self, line: Line, view: View) -> list[RecordFile]:
        """Return the records that are not in the table: those from earlier in a run, and of repeated runs."""
        history = self.results.history(line.experiment.name, view.scale) if view.scale else []
        return [result for result in history if result not in line.results and result.samples_seen is not None]

    def _record(self, text: str, result: RecordFile, folder: str = "") -> dict[str, str]:
        """Return the text and the URL of a link to a copy of a record."""
        name = f"records/{result.record.scale}/{folder}{result.file.name}"
        return {"text": text, "url": self.assets.copy(result.file, name)}

    def _chart(self, chart: Chart, folder: str) -> dict[str, Any]:
        address = self.assets.write(chart.svg, f"charts/{folder}/{len(list(self.assets.folder.rglob('*.svg')))}.svg")
        return {"title": chart.title, "text": chart.text, "size": chart.size_px, "address": address}


def _path_charts() -> list[Chart]:
    orders = named_orders(_PATH_SIDE, _PATH_SIDE, seed=0)
    return [path_chart(title, order, _PATH_SIDE, adjacency(order, _PATH_SIDE, _PATH_SIDE)) for title, order in orders]


def _from_markdown(text: str) -> Markup:
    """Render hand-written notes; HTML in them is escaped."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(text)
    for token in tokens:
        if token.type == "th_open":
            token.attrSet("scope", "col")
    return Markup(markdown.renderer.render(tokens, markdown.options, {}))


def _cell_class(cell: str, column: Column) -> str:
    if cell in (NOT_RUN, NOT_SCORED):
        return "absent"
    return "ours" if column.source == "ours" else "other"


def _about(experiment: Experiment) -> dict[str, str]:
    """Return the entries of an `about:` block with their names on the page."""
    about = {"GPU hours": experiment.about.gpu_hours}
    if experiment.about.paper:
        about["published"] = published_text(experiment) or NOTHING
        about["not stated in the paper"] = experiment.about.paper.left_open
    names = ["note", *(f"note {number}" for number in range(2, len(experiment.about.notes) + 1))]
    return about | dict(zip(names, experiment.about.notes, strict=False))


def _parts(result: RecordFile) -> dict[str, dict[str, str]]:
    """Return protocol, training and machine of a record, by heading."""
    record = result.record
    parts = {"Protocol": record.protocol, "Training": record.training, "Machine": record.machine}
    seed = "" if result.seed is None else f", seed {result.seed}"
    return {f"{name}{seed}": _flat(dict(values)) for name, values in parts.items() if values}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested values with their paths as names."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        key = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, dict):
            flat |= _flat(value, f"{key}, ")
        elif isinstance(value, list):
            flat[key] = ", ".join(map(str, value))
        else:
            flat[key] = "none" if value is None else str(value)
    return flat
