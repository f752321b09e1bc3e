"""The report: a static HTML page with a summary, samples, tables, charts and the protocol of each number."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from zigma_pl.core.files import remove_leftovers, written_whole
from zigma_pl.scan.paths import adjacency, named_orders
from zigma_pl.suite.report import gallery
from zigma_pl.suite.report.assets import Assets, Size, new_assets
from zigma_pl.suite.report.charts import DARK, LIGHT, Chart, path_chart
from zigma_pl.suite.report.curves import NUM_PARTS, TAGS
from zigma_pl.suite.report.experiments import Experiment, by_table
from zigma_pl.suite.report.own_runs import LoggedRun, charts_of
from zigma_pl.suite.report.results import RecordCollection
from zigma_pl.suite.report.scores import NOT_RUN, figure
from zigma_pl.suite.report.sections import SectionWriter
from zigma_pl.suite.report.summary import overview, ranking
from zigma_pl.suite.report.tables import views

TITLE = "zigma_pl: results"
_WITHOUT_RESULTS = "No results yet"
_PATH_SIDE = 8  # tokens


@dataclass(frozen=True)
class Sources:
    """What a report shows.

    experiments: those of the tables and others.
    results: records of these experiments.
    folder: folder of the records and of the notes on tables.
    runs: runs without a record.
    """

    experiments: Sequence[Experiment]
    results: RecordCollection
    folder: Path
    runs: Sequence[LoggedRun] = ()


def write_report(sources: Sources, page: Path, earlier: Sequence[Path] = ()) -> None:
    """Write the page and the folder "assets" beside it.

    An interrupted report leaves the earlier page and its assets intact.

    Args:
        sources: content of the page.
        page: the HTML file; an earlier report is replaced.
        earlier: the folders "assets" of other reports, for images and curves that are missing.
    """
    with new_assets(page.parent / "assets", earlier) as assets:
        remove_leftovers(page)
        text = _render(sources, assets)
        with written_whole(page) as file:
            file.write(text.encode())


def _render(sources: Sources, assets: Assets) -> str:
    environment = Environment(
        loader=PackageLoader("zigma_pl.suite.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markdown"] = _from_markdown
    writer = SectionWriter(sources.results, sources.folder, assets)
    tables = by_table(sources.experiments)
    found = {table: ranking(views(of_table, sources.results)[0]) for table, of_table in tables.items() if table}
    rankings = {table: one for table, one in found.items() if one is not None}
    sections = [writer.section(table, of_table, rankings) for table, of_table in tables.items()]
    return environment.get_template("page.html").render(
        title=TITLE,
        headline=next((section["headline"] for section in sections if section["headline"]), _WITHOUT_RESULTS),
        overview=overview(sources.experiments, sources.results),
        num_records=len(sources.results.all),
        dates=_dates(sources.results),
        sections=sections,
        highlights=_highlights(sections),
        groups=[_logged(name, list(runs), writer) for name, runs in groupby(sources.runs, key=lambda run: run.group)],
        paths=[writer.chart(chart, "paths") for chart in _path_charts()],
        light=LIGHT,
        dark=DARK,
        num_colours=len(LIGHT),
        num_parts=NUM_PARTS,
        not_run=NOT_RUN,
    )


def _dates(results: RecordCollection) -> str:
    """Return the dates of the first and the last record."""
    dates = sorted({str(result.record.machine["date"]) for result in results.all if "date" in result.record.machine})
    return " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else ""


def _highlights(sections: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the best samples for each kind of data, with the section that compares them."""
    found: dict[str | None, dict[str, Any]] = {}
    for section in sections:
        if section["best"] is not None:
            found.setdefault(section["best"]["data"], {**section["best"], "section": section})
    return list(found.values())


def _logged(name: str, runs: Sequence[LoggedRun], writer: SectionWriter) -> dict[str, Any]:
    """Return the runs of an experiment without records as plain values."""
    return {
        "name": name,
        "charts": [writer.chart(chart, f"logs/{name}") for chart in charts_of(runs)],
        "runs": [_logged_run(run, writer) for run in runs],
    }


def _logged_run(run: LoggedRun, writer: SectionWriter) -> dict[str, Any]:
    folder = f"logs/{run.name}"

    def copy(file: Path, stem: str) -> tuple[str, Size] | None:
        return writer.assets.add_image(file, f"{folder}/{stem}")

    return {
        "version": run.folder.name,
        "steps": max((int(last[0]) + 1 for tag in TAGS if (last := run.last(tag))), default=0),
        "losses": [figure(last[1]) if (last := run.last(tag)) else "" for tag in TAGS],
        "config": writer.copy(run.folder / "config.yaml", folder),
        "previews": gallery.previews(gallery.preview_files(run.folder), run.name, copy),
    }


@cache
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
