"""experiments/README.md and docs/results.md, made from the rows and the result records."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from zigma_pl.report.results import Results
from zigma_pl.report.rows import HEADER_FORM, Row, by_table
from zigma_pl.report.scores import PUBLISHED_NAMES
from zigma_pl.report.tables import View, heading_of, one_cell, published_text, views

GENERATED = "<!-- Written by `python -m zigma_pl tables`; changes belong into {source}. -->"

_INDEX_INTRO = """\
A file is a row of a table: it names everything in which it differs from configs/base.yaml, and a scale
(configs/scale/*.yaml) is laid over it. `python -m zigma_pl ablations` runs all of them, or the rows of one table.
"Ours" is at the scale that says most; smoke says only that a row runs. Scores called lite are on lite features, not
comparable with published FID. [docs/results.md]({results}) has all numbers."""

_INDEX_BENCHMARKS = """\
## What needs no training

Memory, GFLOPs and speed of the backbones, on the machine at hand. [docs/performance.md]({performance}) has what
came out on ours; `--plot FILE.png` draws it.

"""
_BENCHMARKS = (
    ("table 6", "GFLOPs, memory and images/s of five backbones, parameters matched", "efficiency"),
    ("table 6", "GFLOPs alone, by kind of operation, in seconds on any machine", "flops"),
    ("figure 4 a, b", "frames/s and memory of a forward pass by the side of the grid", "forward"),
    ("figure 4 c, d", "frames/s and memory by the number of scan orders, against parallel Mamba", "order"),
)

_INDEX_FORM = """\
## A new row

Copy a file, change what the row is about and its header, and run `python -m zigma_pl tables`. The header has this form:

```yaml
{form}```

- Line 1 is `Paper table ID, TITLE, row NAME.`, or `Our table ID, ...` for a table that the paper lacks (for a figure,
  `figure ID`), or `No table: WHAT IT IS.` The rows of a table share the title.
- `Published` has the paper's numbers, and in brackets how they were measured; `nothing` where it has none for the row.
  Scores are {scores}.
- A row of the paper needs `Published`, `Run`, `GPU hours` and `Left open by the paper`, with the choice made here or
  `nothing`; other rows need `Run`. `Without the data` may be there, `Published at SETTING` and `Note` more than once.
- A line that goes on is indented by three spaces. The first line that is no comment ends the header."""


_RESULTS_INTRO = """\
Each number of ours has its record in `results/`, which says how it was measured. `python -m zigma_pl ablations` makes
them, `python -m zigma_pl report` shows them with curves and samples. ↓ lower is better, ↑ higher is better."""


def experiments_index(rows: Sequence[Row], results: Results, address: str) -> str:
    """Return the text of experiments/README.md; `address` is that of docs/results.md from there."""
    parts = [
        "# Experiments",
        GENERATED.format(source="the headers of the YAML files"),
        _INDEX_INTRO.format(results=address),
        _markdown_table(
            ("table", "row", "published", "ours", "command", "GPU hours"),
            [
                (
                    row.table or "none",
                    f"[{row.label}]({row.file.name})",
                    published_text(row),
                    one_cell(row, results),
                    f"`{row.command}`",
                    row.gpu_hours,
                )
                for row in rows
            ],
        ),
        _benchmarks(PurePosixPath(address).with_name("performance.md")),
        _INDEX_FORM.format(form=HEADER_FORM, scores=", ".join(PUBLISHED_NAMES)),
    ]
    return "\n\n".join(parts) + "\n"


def _benchmarks(performance: PurePosixPath) -> str:
    lines = [(table, what, f"`python -m zigma_pl bench {subject}`") for table, what, subject in _BENCHMARKS]
    return _INDEX_BENCHMARKS.format(performance=performance) + _markdown_table(("table", "what", "command"), lines)


def results_page(rows: Sequence[Row], results: Results, page: Path, folder: Path) -> str:
    """Return the text of docs/results.md, which is `page`; `folder` is that of the records."""
    parts = [
        "# Results",
        GENERATED.format(source="results/, the headers of experiments/ and results/SCALE/TABLE.md"),
        _RESULTS_INTRO,
    ]
    for table, of_table in by_table(list(rows)).items():
        parts.append(f"## {heading_of(of_table)}")
        for view in views(of_table, results):
            parts += [f"### {view.title}", _view_table(view, page)]
            if view.remarks:
                parts.append("\n".join(f"- {remark}" for remark in view.remarks))
            if note := note_on(folder, view.scale, table):
                parts.append(note)
    return "\n\n".join(parts) + "\n"


def _view_table(view: View, page: Path) -> str:
    headings = ("row", *(column.heading for column in view.columns), "records")
    lines = []
    for line in view.lines:
        label = f"[{line.row.label}]({_link(line.row.file, page)})"
        records = ", ".join(
            f"[{'record' if result.seed is None else f'seed {result.seed}'}]({_link(result.file, page)})"
            for result in line.results
        )
        lines.append((label, *line.cells, records))
    return _markdown_table(headings, lines)


def _link(file: Path, page: Path) -> str:
    return Path(os.path.relpath(file, page.parent)).as_posix()


def _markdown_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def note_on(folder: Path, scale: str | None, table: str | None) -> str | None:
    """Return what was written by hand about a table at a scale: "results/h100/table1.md", where there is one."""
    if scale is None or table is None:
        return None
    of_scale = folder if folder.name == scale else folder / scale
    file = of_scale / f"{table.replace(' ', '')}.md"
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None
