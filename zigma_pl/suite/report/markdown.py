"""experiments/README.md and docs/results.md, made from the experiments and the result records."""

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from zigma_pl.core.records import read_content
from zigma_pl.suite.report.experiments import FORM, Experiment, by_table
from zigma_pl.suite.report.results import Results
from zigma_pl.suite.report.scores import PUBLISHED_NAMES
from zigma_pl.suite.report.tables import View, heading_of, one_cell, published_text, views

GENERATED = "<!-- Written by `python -m zigma_pl tables`; changes belong into {source}. -->"
# What could begin markup inside of a line: a backslash, code, emphasis, a link, an HTML tag or entity, a table's cell.
_MARKUP = re.compile(r"^[#>+=-]|[\\`*\[\]<|~]|&(?=[#\w]+;)|\b_|_\b|(?<=www)\.|(?<=\w):(?=//)")

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
## A new experiment

Copy a file, change what the experiment is about and its `about:` block, and run `python -m zigma_pl tables`. The block
has this form; only `title` is required, and training reads none of it:

```yaml
{form}```

- `table` is `table ID`, or for a figure `figure ID`; without it the experiment belongs to no table, and `title` says
  what it is. The experiments of a table share the title, and have a `name` each.
- `paper` is there if the table is one of the paper's. `published` has the paper's numbers as printed, `{{}}` where
  it has none; `protocol` says how they were measured. Scores are
  {scores}.
- `left_open` is what the paper does not say, with the choice made here, or `nothing`."""


_RESULTS_INTRO = """\
Each number of ours has its record in `results/`, which says how it was measured. `python -m zigma_pl ablations` makes
them, `python -m zigma_pl report` shows them with curves and samples. ↓ lower is better, ↑ higher is better."""


def escape(text: str) -> str:
    """Return text as Markdown that shows it as it is, on one line."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


def experiments_index(experiments: Sequence[Experiment], results: Results, address: str) -> str:
    """Return the text of experiments/README.md; `address` is that of docs/results.md from there."""
    lines = [
        (
            experiment.about.table or "none",
            f"[{escape(experiment.label)}]({quote(experiment.file.name)})",
            escape(published_text(experiment)),
            escape(one_cell(experiment, results)),
            f"`{experiment.command}`",
            escape(experiment.about.gpu_hours),
        )
        for experiment in experiments
    ]
    parts = [
        "# Experiments",
        GENERATED.format(source="the `about:` blocks of the YAML files"),
        _INDEX_INTRO.format(results=address),
        _markdown_table(("table", "row", "published", "ours", "command", "GPU hours"), lines),
        _benchmarks(PurePosixPath(address).with_name("performance.md")),
        _INDEX_FORM.format(form=FORM, scores=", ".join(PUBLISHED_NAMES)),
    ]
    return "\n\n".join(parts) + "\n"


def _benchmarks(performance: PurePosixPath) -> str:
    lines = [(table, what, f"`python -m zigma_pl bench {subject}`") for table, what, subject in _BENCHMARKS]
    return _INDEX_BENCHMARKS.format(performance=performance) + _markdown_table(("table", "what", "command"), lines)


def results_page(experiments: Sequence[Experiment], results: Results, page: Path, folder: Path) -> str:
    """Return the text of docs/results.md, which is `page`; `folder` is that of the records."""
    parts = [
        "# Results",
        GENERATED.format(source="results/, the `about:` blocks of experiments/ and results/SCALE/TABLE.md"),
        _RESULTS_INTRO,
    ]
    for table, of_table in by_table(experiments).items():
        parts.append(f"## {escape(heading_of(of_table))}")
        for view in views(of_table, results):
            parts += [f"### {escape(view.title)}", _view_table(view, page)]
            if view.remarks:
                parts.append("\n".join(f"- {escape(remark)}" for remark in view.remarks))
            if note := note_on(folder, view.scale, table):
                parts.append(note)
    return "\n\n".join(parts) + "\n"


def _view_table(view: View, page: Path) -> str:
    headings = ("row", *(escape(column.heading) for column in view.columns), "records")
    lines = []
    for line in view.lines:
        label = f"[{escape(line.experiment.label)}]({_link(line.experiment.file, page)})"
        records = ", ".join(
            f"[{'record' if result.seed is None else f'seed {result.seed}'}]({_link(result.file, page)})"
            for result in line.results
        )
        lines.append((label, *map(escape, line.cells), records))
    return _markdown_table(headings, lines)


def _link(file: Path, page: Path) -> str:
    return quote(Path(os.path.relpath(file, page.parent)).as_posix())


def _markdown_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [headings, ["---"] * len(headings), *lines])


def note_on(folder: Path, scale: str | None, table: str | None) -> str | None:
    """Return the Markdown that was written by hand about a table at a scale, "results/h100/table1.md", if it exists."""
    if scale is None or table is None:
        return None
    of_scale = folder if folder.name == scale else folder / scale
    file = of_scale / f"{table.replace(' ', '')}.md"
    if not file.is_file():
        return None
    return read_content(file, "write it again in UTF-8").decode(errors="replace").strip()
