"""The section of a table as plain values for the template: findings, samples, scores, charts, settings."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zigma_pl.core.files import read_regular
from zigma_pl.suite.report import gallery
from zigma_pl.suite.report.assets import Assets, RunAssets
from zigma_pl.suite.report.charts import Chart
from zigma_pl.suite.report.curves import curves_of
from zigma_pl.suite.report.experiments import NOTHING, Experiment
from zigma_pl.suite.report.figures import figures
from zigma_pl.suite.report.gallery import Samples
from zigma_pl.suite.report.markdown import note_on
from zigma_pl.suite.report.protocols import Parts, protocols
from zigma_pl.suite.report.results import RecordCollection, RecordFile, data_of
from zigma_pl.suite.report.scores import NOT_RUN, NOT_SCORED, figure
from zigma_pl.suite.report.summary import Ranking, better_elsewhere, finding, headline, ranking
from zigma_pl.suite.report.tables import Column, Line, View, heading_of, published_text, views


@dataclass(frozen=True)
class SectionWriter:
    """Makes sections, and copies the files that they link to into the assets.

    results: all records.
    folder: folder of the records and of the notes on tables.
    assets: where files are copied to.
    """

    results: RecordCollection
    folder: Path
    assets: Assets
    _runs: dict[Path, RunAssets] = field(default_factory=dict)

    def section(
        self, table: str | None, experiments: Sequence[Experiment], rankings: Mapping[str, Ranking]
    ) -> dict[str, Any]:
        """Return a section.

        Args:
            table: the table, None for experiments of no table.
            experiments: those of the table.
            rankings: of all tables.
        """
        shown = views(experiments, self.results)
        main, others = shown[0], shown[1:]
        found = ranking(main)
        better = better_elsewhere(found, rankings) if found else []
        place = f"in {table}" if table else "among the experiments of no table"
        return {
            "anchor": (table or "other experiments").replace(" ", "-"),
            "heading": heading_of(experiments),
            "scales": [view.scale for view in shown if view.scale] or [NOT_RUN],
            "headline": headline(place, found, better) if found else None,
            "finding": finding(found, main, others, better) if found else [],
            "views": [self._view(table, view) for view in shown],
            "best": self._best(main),
        }

    def chart(self, chart: Chart, folder: str) -> dict[str, Any]:
        """Write a chart, or copy it from an earlier report; returns what the template shows."""
        title = re.sub(r"\W+", "_", chart.title.lower()).strip("_")[:60]
        name = f"charts/{folder}/{title}-{chart.key}.svg"
        earlier = self.assets.earlier(name)
        address = self.assets.put(read_regular(earlier[0]) if earlier else chart.svg.encode(), name)
        return {"title": chart.title, "text": chart.text, "size": chart.size_px, "address": address}

    def copy(self, file: Path, folder: str) -> str | None:
        """Copy a config; returns its URL, or None if it is missing."""
        return self.assets.add(read_regular(file), f"{folder}/{file.name}") if file.is_file() else None

    def _run(self, result: RecordFile) -> RunAssets:
        if result.file not in self._runs:
            self._runs[result.file] = RunAssets(self.assets, result.file, result.record.scale)
        return self._runs[result.file]

    def _best(self, view: View) -> dict[str, Any] | None:
        """Return the data and the samples of the best experiment, or of the first one if there is no ranking."""
        found = ranking(view)
        line = found.best.line if found else next((line for line in view.lines if line.results), None)
        if line is None:
            return None
        samples = self._samples(line, None)
        if not samples.pictures:
            return None
        data = data_of(line.results[0]) or "unknown data"
        heading = f"{data[0].upper()}{data[1:]}"
        return {"data": data, "heading": heading, "scale": view.scale, "samples": samples}

    def _samples(self, line: Line, index: int | None) -> Samples:
        result = line.results[0]
        return gallery.samples_of(result, line.experiment.label, index, self._run(result))

    def _view(self, table: str | None, view: View) -> dict[str, Any]:
        note = note_on(self.folder, view.scale, table)
        found = ranking(view)
        curves = {result.file: curves_of(result, self._run(result)) for line in view.lines for result in line.results}
        charts = figures(view, self.results, curves, found.score.name if found else "validation_loss")
        folder = f"{(table or 'none').replace(' ', '')}/{view.scale}"
        shared = protocols([result for line in view.lines for result in line.results])
        own = iter(shared.own)
        return {
            "scale": view.scale,
            "title": view.title,
            "columns": view.columns,
            "remarks": view.remarks,
            "lines": [self._line(line, view, [next(own) for _ in line.results]) for line in view.lines],
            "note": note,
            "main_charts": [self.chart(chart, folder) for chart in charts.main],
            "other_charts": [self.chart(chart, folder) for chart in charts.others],
            "samples": _compared([self._samples(line, index) for index, line in enumerate(view.lines) if line.results]),
            "shared": shared.shared,
        }

    def _line(self, line: Line, view: View, own: Sequence[Parts]) -> dict[str, Any]:
        seeds = ["record"] if len(line.results) == 1 else [f"seed {result.seed}" for result in line.results]
        return {
            "experiment": line.experiment,
            "config": self.copy(line.experiment.file, "experiments"),
            "cells": [_cell(text, column, line) for text, column in zip(line.cells, view.columns, strict=True)],
            "addresses": [self._record(text, result) for text, result in zip(seeds, line.results, strict=True)],
            "about": _about(line.experiment),
            "records": [
                {"seed": seed, "parts": parts, "previews": self._previews(result, line.experiment.label)}
                for seed, parts, result in zip(seeds, own, line.results, strict=True)
            ],
            "others": [
                self._record(f"{of.samples_seen:,} samples, seed {of.seed}", of) for of in self._others(line, view)
            ],
        }

    def _previews(self, result: RecordFile, label: str) -> list[gallery.Captioned]:
        folder, run = result.record.training.get("log_folder"), self._run(result)
        files = gallery.preview_files(result.locate(folder)) if folder else []
        return gallery.previews(files or run.all_earlier("step_*"), label, run.image)

    def _others(self, line: Line, view: View) -> list[RecordFile]:
        """Return the records that are not in the table: those from earlier in a run, and of repeated runs."""
        history = self.results.history(line.experiment.name, view.scale) if view.scale else []
        return [result for result in history if result not in line.results and result.samples_seen is not None]

    def _record(self, text: str, result: RecordFile) -> dict[str, str]:
        """Return the text and the URL of a link to a copy of a record."""
        return {"text": text, "url": self._run(result).record()}


def _compared(samples: Sequence[Samples]) -> dict[str, Any]:
    """Return the samples of a view: first rows of grids with the same captions side by side, and the others."""
    captions = next((one.captions for one in samples if one.first_row), ())
    num_columns = next((len(one.first_row) for one in samples if one.first_row), 0)
    rows = [one for one in samples if len(one.first_row) == num_columns > 0 and one.captions == captions]
    return {
        "captions": captions,
        "protocols": list(dict.fromkeys(one.protocol for one in rows)),
        "rows": rows,
        "others": [one for one in samples if one not in rows],
    }


def _cell(text: str, column: Column, line: Line) -> dict[str, str]:
    """Return the text of a cell, its CSS class, and the values of the seeds for its tooltip."""
    if text in (NOT_RUN, NOT_SCORED):
        return {"text": text, "class": "absent", "title": ""}
    if column.source != "ours":
        return {"text": text, "class": "other", "title": ""}
    values = [(result.seed, result.value(column.score)) for result in line.results]
    seeds = [f"seed {seed}: {figure(value)}" for seed, value in values if value is not None]
    return {"text": text, "class": "ours", "title": "; ".join(seeds)}


def _about(experiment: Experiment) -> Mapping[str, str]:
    """Return the entries of an `about:` block with their names on the page."""
    about = {"GPU hours": experiment.about.gpu_hours}
    if experiment.about.paper:
        about["published"] = published_text(experiment) or NOTHING
        about["left open by the paper"] = experiment.about.paper.left_open
    names = ["note", *(f"note {number}" for number in range(2, len(experiment.about.notes) + 1))]
    return about | dict(zip(names, experiment.about.notes, strict=False))
