"""The report: one static page of tables, curves, samples and how each number was made."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from zigma_pl.report import gallery
from zigma_pl.report.assets import Assets
from zigma_pl.report.charts import swatch
from zigma_pl.report.figures import charts
from zigma_pl.report.markdown import note_on
from zigma_pl.report.markup import Markup, tag
from zigma_pl.report.results import Result, Results
from zigma_pl.report.rows import NOTHING, Row, by_table
from zigma_pl.report.scan_paths import scan_paths
from zigma_pl.report.scores import NOT_RUN, NOT_SCORED
from zigma_pl.report.style import STYLE
from zigma_pl.report.tables import Column, Line, View, heading_of, published_text, views

TITLE = "zigma_pl: results"


def write_report(rows: Sequence[Row], results: Results, folder: Path, page: Path) -> None:
    """Write the page, and beside it a folder "assets" with all that it shows.

    Args:
        rows, results: what it is about.
        folder: of the records, where notes on tables lie too.
        page: the HTML file; what an earlier report wrote there is replaced.
    """
    assets = Assets(page.parent / "assets")
    tables = by_table(list(rows))
    sections = [
        tag("section", _table(table, of_table, results, folder, assets), id=_anchor(table))
        for table, of_table in tables.items()
    ]
    body = tag(
        "body",
        tag("header", tag("h1", TITLE), tag("p", _summary(rows, results), class_="muted"), _contents(tables, results)),
        tag("main", sections, _paths_section()),
    )
    page.write_text(f"<!DOCTYPE html>\n{tag('html', _head(), body, lang='en')}\n", encoding="utf-8")


def _head() -> Markup:
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", TITLE),
        tag("style", Markup(STYLE)),
        tag("link", rel="icon", href="data:,"),  # else browsers ask for a file of their own choice
    )


def _summary(rows: Sequence[Row], results: Results) -> list[str]:
    num_run = sum(bool(results.scales([row.name])) for row in rows)
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    return [
        f"{num_run} of {len(rows)} rows run, {len(results.all)} records; written on {date} by ",
        tag("code", "python -m zigma_pl report"),
        ". ↓ lower is better, ↑ higher is better.",
    ]


def _contents(tables: dict[str | None, list[Row]], results: Results) -> Markup:
    entries = []
    for table, of_table in tables.items():
        scales = results.scales(row.name for row in of_table)
        run = [f"{sum(bool(results.of(row.name, scale)) for row in of_table)} rows at {scale}" for scale in scales]
        text = f" ({', '.join(run) or NOT_RUN}; {len(of_table)} in all)"
        entries.append(tag("li", tag("a", heading_of(of_table), href=f"#{_anchor(table)}"), text))
    entries.append(tag("li", tag("a", "Scan paths", href="#paths")))
    return tag("nav", tag("ul", entries), aria_label="Contents")


def _anchor(table: str | None) -> str:
    return (table or "other rows").replace(" ", "-")


def _table(table: str | None, rows: list[Row], results: Results, folder: Path, assets: Assets) -> list[Markup]:
    addresses = {row.name: assets.copy(row.file, f"rows/{row.file.name}") for row in rows}
    parts = [tag("h2", heading_of(rows))]
    for view in views(rows, results):
        parts += [tag("h3", view.title), _scores(view, addresses, assets)]
        parts += [tag("ul", [tag("li", remark) for remark in view.remarks], class_="remarks")] if view.remarks else []
        if note := note_on(folder, view.scale, table):
            parts.append(tag("div", _from_markdown(note), class_="note"))
        if view.scale is not None:
            parts += [*charts(view, results), tag("h4", "Samples"), gallery.samples(view, assets)]
        parts.append(tag("h4", "Rows"))
        parts += [_details(line, _others(line, view, results), assets) for line in view.lines]
    return parts


def _from_markdown(text: str) -> Markup:
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(text)
    for token in tokens:
        if token.type == "th_open":
            token.attrSet("scope", "col")
    return Markup(markdown.renderer.render(tokens, markdown.options, {}))


def _scores(view: View, addresses: dict[str, str], assets: Assets) -> Markup:
    head = [tag("th", "row", scope="col"), *map(_heading, view.columns), tag("th", "files", scope="col")]
    lines = []
    for place, line in enumerate(view.lines):
        label = tag("th", swatch(place) if view.scale else None, line.row.label, scope="row")
        cells = [
            tag("td", cell or "–", class_=_class(cell, column))
            for cell, column in zip(line.cells, view.columns, strict=True)
        ]
        links = [tag("a", "YAML", href=addresses[line.row.name])]
        for result in line.results:
            name = "record" if len(line.results) == 1 else f"seed {result.seed}"
            links += [Markup(" "), _link(name, result, assets)]
        lines.append(tag("tr", label, cells, tag("td", links)))
    table = tag("table", tag("thead", tag("tr", head)), tag("tbody", lines))
    # Focusable, so that it can be scrolled with the keys.
    return tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=f"Scores, {view.title}")


def _link(text: str, result: Result, assets: Assets, folder: str = "") -> Markup:
    """Return a link to a copy of the record's file."""
    return tag("a", text, href=assets.copy(result.file, f"records/{result.record.scale}/{folder}{result.file.name}"))


def _others(line: Line, view: View, results: Results) -> list[Result]:
    """Return what the table leaves out: records from before the end of a run, which charts show, and of runs again."""
    if view.scale is None:
        return []
    of_row = results.history(line.row.name, view.scale)
    return [result for result in of_row if result not in line.results and result.samples_seen is not None]


def _heading(column: Column) -> Markup:
    name = column.heading.removesuffix(column.source).strip()
    return tag("th", name, tag("span", column.source) if name != column.heading else None, scope="col")


def _class(cell: str, column: Column) -> str | None:
    if cell in (NOT_RUN, NOT_SCORED):
        return "absent"
    return "ours" if column.source == "ours" else None


def _details(line: Line, others: Sequence[Result], assets: Assets) -> Markup:
    """Return what is known of a row, folded: what its header says, and of each record protocol, training, machine."""
    row = line.row
    about = {"command": tag("code", row.command), "GPU hours": row.gpu_hours}
    if row.in_paper:
        about |= {"published": published_text(row) or NOTHING, "left open by the paper": row.left_open}
    about |= {"note" if number == 0 else f"note {number + 1}": note for number, note in enumerate(row.notes)}
    summary = row.label if line.results else f"{row.label} ({NOT_RUN})"
    records = [_of_record(result, row, assets) for result in line.results]
    if others:
        links = [
            _link(f"{of.samples_seen:,} samples, seed {of.seed}", of, assets, f"{of.samples_seen}/") for of in others
        ]
        records.append([tag("h4", "Other records, after"), tag("ul", [tag("li", link) for link in links])])
    return tag("details", tag("summary", summary), _list(about), records)


def _of_record(result: Result, row: Row, assets: Assets) -> list[Markup]:
    record = result.record
    parts = []
    for name, values in (("Protocol", record.protocol), ("Training", record.training), ("Machine", record.machine)):
        heading = name if result.seed is None else f"{name}, seed {result.seed}"
        parts += [tag("h4", heading), _list(_flat(values))] if values else []
    drawn = gallery.previews(result, row.label, assets)
    return [*parts, tag("h4", "While training"), drawn] if drawn else parts


def _list(values: dict[str, Any]) -> Markup:
    return tag("dl", [[tag("dt", name), tag("dd", text)] for name, text in values.items()])


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested values by their path, in words."""
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


def _paths_section() -> Markup:
    text = (
        "The paths over a grid of 8 × 8 tokens, from the dot to the square, each part stronger than the one before. "
        "Adjacent are consecutive tokens that share an edge. Layer i of a row takes path i mod k of its k. Larger: "
    )
    words = tag("p", text, tag("code", "python -m zigma_pl paths"), ".")
    return tag("section", tag("h2", "Scan paths"), words, scan_paths(), id="paths")
