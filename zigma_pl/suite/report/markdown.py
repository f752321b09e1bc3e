"""The text of experiments/README.md and docs/results.md."""

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from zigma_pl.core.records import read_content
from zigma_pl.suite.report.experiments import FORM, Experiment, by_table
from zigma_pl.suite.report.results import RecordCollection
from zigma_pl.suite.report.scores import PUBLISHED_NAMES
from zigma_pl.suite.report.tables import View, heading_of, one_cell, published_text, views

GENERATED = "<!-- Written by `python -m zigma_pl tables`. To change it, edit {source}. -->"
# Possible markup within a line: backslash, code, emphasis, link, HTML tag or entity, cell of a table.
_MARKUP = re.compile(r"^[#>+=-]|[\\`*\[\]<|~]|&(?=[#\w]+;)|\b_|_\b|(?<=www)\.|(?<=\w):(?=//)")

_INDEX_INTRO = """\
Each YAML file is an experiment: one from a table of the paper, a control, or an example. It contains only what differs
from configs/base.yaml. `python -m zigma_pl ablations` runs all experiments, or those of one table, at a scale: a config
such as configs/scale/pilot.yaml (a small model, a short training), which is merged over the experiment.

"Ours" is the result at the largest scale that was run; the scale smoke only shows that an experiment runs. Scores
called lite are computed on EfficientNet-Lite0 features and cannot be compared with published scores.
[docs/results.md]({results}) has all numbers and explains the names."""

_INDEX_BENCHMARKS = """\
## Measurements without training

Memory, GFLOPs and speed of the backbones on your machine. [docs/performance.md]({performance}) has our results;
`--plot FILE.png` plots them.

"""
_BENCHMARKS = (
    ("table 6", "GFLOPs, memory and images/s of five backbones with matched parameters", "efficiency"),
    ("table 6", "only GFLOPs, by kind of operation, within seconds on any machine", "flops"),
    ("figure 4 a, b", "frames/s and memory of a forward pass, by grid size", "forward"),
    ("figure 4 c, d", "frames/s and memory by number of scan orders, and of parallel Mamba", "order"),
)

_INDEX_FORM = """\
## A new experiment

Copy a file, change the options and the `about:` block, and run `python -m zigma_pl tables`. Training ignores the block.
Only `title` is required:

```yaml
{form}```

- `table` is `table ID` or `figure ID`. Experiments of a table have the same `title` and different `name`s. Without
  `table`, it is not part of a table, and `title` describes it.
- `paper` is required for a table of the paper. `published` contains the paper's numbers as printed, or `{{}}`
  if there are none; `protocol` is how they were measured. The scores are
  {scores}.
- `left_open` is what the paper does not state, with the choice made here, or `nothing`."""


_RESULTS_INTRO = """\
Each of our numbers has a record in `results/`, which contains the protocol of the measurement.
`python -m zigma_pl ablations` writes the records, and `python -m zigma_pl report` makes a page with curves and samples.
docs/protocol.md explains the scores. ↓ lower is better, ↑ higher is better. "Lite" scores are computed on
EfficientNet-Lite0 features and cannot be compared with published scores.

A sweep scans rows or columns in one direction, a zigzag in alternating directions. The number in names such as zigzag-8
is the number of scan orders that the layers cycle through. A scale is a config in `configs/scale/`: pilot, for example,
is a small model with a short training."""


def escape(text: str) -> str:
    """Return Markdown that shows the text literally, on one line."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


def experiments_index(experiments: Sequence[Experiment], results: RecordCollection, address: str) -> str:
    """Return the text of experiments/README.md; `address` is the relative URL of docs/results.md."""
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
        _markdown_table(("table", "experiment", "published", "ours", "command", "GPU hours"), lines),
        _benchmarks(PurePosixPath(address).with_name("performance.md")),
        _INDEX_FORM.format(form=FORM, scores=", ".join(PUBLISHED_NAMES)),
    ]
    return "\n\n".join(parts) + "\n"


def _benchmarks(performance: PurePosixPath) -> str:
    lines = [(table, what, f"`python -m zigma_pl bench {subject}`") for table, what, subject in _BENCHMARKS]
    return _INDEX_BENCHMARKS.format(performance=performance) + _markdown_table(("table", "what", "command"), lines)


def results_page(experiments: Sequence[Experiment], results: RecordCollection, page: Path, folder: Path) -> str:
    """Return the text of docs/results.md. `page` is its path, and `folder` the folder of the records."""
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
    headings = ("experiment", *(escape(column.heading) for column in view.columns), "records")
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
    """Return the hand-written Markdown on a table at a scale, such as results/h100/table1.md, if the file exists."""
    if scale is None or table is None:
        return None
    of_scale = folder if folder.name == scale else folder / scale
    file = of_scale / f"{table.replace(' ', '')}.md"
    if not file.is_file():
        return None
    return read_content(file, "save it in UTF-8").decode(errors="replace").strip()
