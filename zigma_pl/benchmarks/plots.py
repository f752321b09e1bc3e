"""Charts of the benchmarks: lines by grid size (Figure 4 a, b) and by number of orders (c, d), bars for the others."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from zigma_pl.benchmarks.models import EXECUTION_LABELS
from zigma_pl.benchmarks.timing import GIGABYTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from zigma_pl.benchmarks.report import BenchmarkResult

Record = dict[str, Any]
Value = Callable[[Record], float | None]

INK, MUTED, FAINT = "#26263a", "#6b6b80", "#d9d9e3"
FAMILY_COLOURS = {
    "ZigMa zigzag-8": "#5b3fa8",
    "ZigMa zigzag": "#5b3fa8",
    "ZigMa sweep": "#c2489a",
    "VisionMamba": "#e0b13a",
    "parallel Mamba-8": "#d9772b",
    "DiT": "#1f7aa8",
    "U-ViT": "#7f8c1f",
    "parallel Mamba": "#d9772b",
}
BACKGROUND_FAMILY = "ZigMa sweep"  # plotted wide and pale behind zigzag, as both lines nearly coincide
EXECUTION_STYLES: dict[str, dict[str, Any]] = {
    "eager": {"linestyle": "-", "marker": "o", "markerfacecolor": "white", "linewidth": 1.2},
    "compiled": {"linestyle": "--", "marker": "s", "markerfacecolor": "white", "linewidth": 1.6},
    "graph": {"linestyle": "-", "marker": "o", "linewidth": 2.2},
    "compiled-graph": {"linestyle": "--", "marker": "D", "linewidth": 2.2},
}
EXECUTION_ALPHAS = {"eager": 0.55, "compiled": 0.8, "graph": 1.0, "compiled-graph": 1.0}
PASS_COLOURS = {"forward": "#5b3fa8", "backward": "#b9a7e6"}
KIND_COLOURS = {
    "matrix_products": "#5b3fa8",
    "attention": "#1f7aa8",
    "convolution": "#e0b13a",
    "scan": "#c2489a",
    "elementwise": "#b5b5c3",
}


def plot_forward(result: "BenchmarkResult") -> "Figure":
    """Plot frames per second and peak memory by grid size (ZigMa, Figure 4 a, b).

    Batch sizes with only one grid are left out if another batch size has several.
    """
    grids: dict[int, set[int]] = {}
    for record in result.records:
        grids.setdefault(record["batch_size"], set()).add(record["grid"])
    most = max(map(len, grids.values()), default=0)
    batches = {batch_size for batch_size, of_batch in grids.items() if len(of_batch) > 1 or most == 1}
    result = replace(result, records=[record for record in result.records if record["batch_size"] in batches])

    def series(record: Record) -> str:
        return record["label"] + (f", batch {record['batch_size']}" if len(batches) > 1 else "")

    heading = "Forward pass" + (f" of batch {batches.pop()}" if len(batches) == 1 else "")
    return _plot_lines(result, heading, lambda record: record["grid"], "grid size (tokens per side)", series)


def plot_order(result: "BenchmarkResult") -> "Figure":
    """Plot frames per second and peak memory by number of orders (ZigMa, Figure 4 c, d)."""
    settings = sorted({(record["grid"], record["batch_size"]) for record in result.records})

    def series(record: Record) -> str:
        name = record["family"] + EXECUTION_LABELS[record["execution"]]
        return name + (f", grid {record['grid']}, batch {record['batch_size']}" if len(settings) > 1 else "")

    one = "" if len(settings) > 1 else ", {0} x {0} grid, batch {1},".format(*settings[0])
    return _plot_lines(
        result, f"Scan orders{one}", lambda record: record["num_orders"], "number of scan orders", series
    )


def plot_train(result: "BenchmarkResult") -> "Figure":
    """Plot images per second and peak memory of training steps as bars, with a column for each setting."""
    return _plot_bars(
        result,
        "Training step",
        {"images/s": lambda record: record["per_second"], "peak memory (GB)": _gigabytes},
    )


def plot_efficiency(result: "BenchmarkResult") -> "Figure":
    """Plot speed and memory of training, speed of the forward pass, and operations as bars, by setting."""
    return _plot_bars(
        result,
        "Efficiency",
        {
            "training images/s": lambda record: record["train"]["per_second"],
            "peak training memory (GB)": lambda record: _gigabytes(record["train"]),
            "forward frames/s": lambda record: record["forward"]["per_second"],
            "GFLOPs per frame": lambda record: record["flops"]["total"] / 1e9,
        },
    )


def plot_flops(result: "BenchmarkResult") -> "Figure":
    """Plot the operations of a call as stacked bars by kind, with a column for each grid."""
    grids = sorted({record["grid"] for record in result.records})
    figure, (panels,) = _figure(result, "Operations", 1, len(grids), 0.4 * _most_bars(result, grids) + 1.2)
    for axes, grid in zip(panels, grids, strict=True):
        records = [record for record in result.records if record["grid"] == grid]
        starts = np.zeros(len(records))
        for kind, colour in KIND_COLOURS.items():
            lengths = np.array([record["flops"][kind] / 1e9 for record in records])
            bars = axes.barh(range(len(records)), lengths, left=starts, color=colour, height=0.6, label=kind)
            starts += lengths
        axes.bar_label(bars, [f"{total:,.0f}" for total in starts], padding=3, fontsize=8, color=INK)
        axes.set_yticks(range(len(records)), [record["label"] for record in records])
        axes.tick_params(labelleft=axes is panels[0])
        axes.set_title(f"{grid**2:,} tokens", fontsize=10, color=INK)
        axes.set_xlabel("GFLOPs", color=MUTED)
        axes.set_xlim(0, 1.25 * max(starts))
        axes.invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    _legend(figure, handles, [label.replace("_", " ") for label in labels])
    return figure


def plot_scan(result: "BenchmarkResult") -> "Figure":
    """Plot forward and backward times as stacked bars, with a panel for each shape and the device limit."""
    shapes = list(dict.fromkeys(tuple(record["shape"]) for record in result.records))
    figure, panels = _figure(result, "Selective scan", 1, len(shapes), 0.45 * _most_bars(result, shapes) + 1.3)
    for axes, shape in zip(panels[0], shapes, strict=True):
        records = [record for record in result.records if tuple(record["shape"]) == shape]
        for row, record in enumerate(records):
            _stacked_bar(axes, row, record)
        axes.axvline(1000 * records[0]["both"]["limit_seconds"], color=INK, linewidth=1, linestyle="--")
        axes.set_yticks(range(len(records)), [record["contestant"] for record in records])
        axes.set_title("B {}, L {:,}\nE {:,}, N {}".format(*shape), fontsize=10, color=INK)
        axes.tick_params(labelleft=axes is panels[0][0])
        axes.set_xlabel("ms", color=MUTED)
        axes.set_xlim(0, axes.get_xlim()[1] * 1.3)
        axes.invert_yaxis()
    handles = [*panels[0][0].patches[:2], panels[0][0].lines[0]]
    _legend(figure, handles, ["forward", "backward", "device limit (forward + backward)"])
    return figure


# ----------------------------------------------------------------------------------------------------------- elements
def _figure(
    result: "BenchmarkResult", heading: str, num_rows: int, num_columns: int, row_inch: float
) -> tuple["Figure", list]:
    """Return a figure with title (subject, device and date), and its panels by row and column."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    size = (max(2.6 * num_columns + 1.6, 9.0), num_rows * row_inch + 1.5)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=size, dpi=160, layout=layout, facecolor="white")
    machine = result.machine
    where = f" on {machine['device']}" if "device" in machine else ""
    figure.suptitle(f"{heading}{where}, {machine['date']}\n", fontsize=13, color=INK, weight="bold")
    subtitle = result.notes[0].partition(": ")[2] or result.notes[0]
    figure.text(0.5, 1 - 0.42 / size[1], subtitle, ha="center", va="top", fontsize=8.5, color=MUTED)
    panels = figure.subplots(num_rows, num_columns, squeeze=False).tolist()
    for axes in (axes for row in panels for axes in row):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(colors=MUTED, labelsize=8.5)
        axes.set_axisbelow(True)
    return figure, panels


def _plot_bars(result: "BenchmarkResult", heading: str, values: dict[str, Value]) -> "Figure":
    """Plot a row of panels for each label and value, with a column for each setting; None means out of memory.

    Values that are missing in all records, such as memory on a CPU, are left out.
    """
    settings = sorted({(record["grid"], record["batch_size"]) for record in result.records})
    drawn = [row for row in values.items() if any(row[1](record) is not None for record in result.records)]
    drawn = drawn or list(values.items())[:1]
    height = 0.32 * _most_bars(result, settings) + 0.9
    figure, panels = _figure(result, heading, len(drawn), len(settings), height)
    for column, (grid, batch_size) in enumerate(settings):
        records = [r for r in result.records if (r["grid"], r["batch_size"]) == (grid, batch_size)]
        labels = [record["label"] for record in records]
        colours = [(FAMILY_COLOURS.get(r["family"], MUTED), EXECUTION_ALPHAS[r["execution"]]) for r in records]
        for axes, (x_label, value) in zip((row[column] for row in panels), drawn, strict=True):
            _bars(axes, labels, list(map(value, records)), colours, x_label)
            axes.tick_params(labelleft=column == 0)
        panels[0][column].set_title(f"{grid**2:,} tokens, batch {batch_size}", fontsize=10, color=INK)
    return figure


def _plot_lines(
    result: "BenchmarkResult",
    heading: str,
    position: Callable[[Record], int],
    x_label: str,
    series: Callable[[Record], str],
) -> "Figure":
    """Plot a line for each series: frames per second, and peak memory if measured."""
    counted = any(record["peak_memory_bytes"] is not None for record in result.records)
    figure, (panels,) = _figure(result, heading, 1, 1 + counted, 4.0)
    groups: dict[str, list[Record]] = {}
    for record in result.records:
        groups.setdefault(series(record), []).append(record)
    ticks = sorted({position(record) for record in result.records})
    values: list[Value] = [lambda record: record["per_second"], _gigabytes]
    for axes, value, y_label in zip(panels, values, ("frames/s", "peak memory (GB)"), strict=False):
        for name, records in groups.items():
            _line(axes, name, records, position, value)
        axes.set_xticks(ticks)
        axes.set_xlabel(x_label, color=MUTED)
        axes.set_ylabel(y_label, color=MUTED)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
    _scale_speed(panels[0])
    _legend(figure, *panels[0].get_legend_handles_labels())
    return figure


def _line(
    axes: "Axes",
    name: str,
    records: list[Record],
    position: Callable[[Record], int],
    value: Value,
) -> None:
    records = sorted(records, key=position)
    missing = [str(position(record)) for record in records if record["out_of_memory"]]
    points = [(position(record), value(record)) for record in records if value(record) is not None]
    colour, execution = FAMILY_COLOURS.get(records[0]["family"], MUTED), records[0]["execution"]
    label = name + (f" (out of memory at {', '.join(missing)})" if missing else "")
    style = EXECUTION_STYLES[execution]
    if records[0]["family"] == BACKGROUND_FAMILY:
        style = style | {"alpha": 0.4, "linewidth": 2.5 * style["linewidth"], "zorder": 1}
    axes.plot(*zip(*points, strict=True) if points else ([], []), color=colour, label=label, ms=5, **style)


def _scale_speed(axes: "Axes") -> None:
    """Use a logarithmic axis, with plain numbers, if the values differ by more than a factor of 5."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    values = [float(value) for line in axes.lines for value in np.asarray(line.get_ydata())]
    if values and max(values) > 5 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="y", which="minor", length=0)
        axes.set_ylim(0.8 * min(values), 1.25 * max(values))


def _legend(figure: "Figure", handles: Iterable[Any], labels: Iterable[str]) -> None:
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)
    for text in legend.get_texts():
        text.set_color(INK)


def _bars(
    axes: "Axes", labels: list[str], values: list[float | None], colours: list[tuple[str, float]], x_label: str
) -> None:
    """Plot horizontal bars, the first on top, each with its value."""
    from zigma_pl.benchmarks.report import OUT_OF_MEMORY, figure_cell

    bars = axes.barh(range(len(labels)), [value or 0.0 for value in values], color=colours, height=0.7)
    texts = [OUT_OF_MEMORY if value is None else figure_cell(value) for value in values]
    axes.bar_label(bars, texts, padding=3, fontsize=8, color=INK)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlim(0, 1.25 * max([value for value in values if value is not None], default=1.0))
    axes.set_xlabel(x_label, color=MUTED)
    axes.invert_yaxis()


def _stacked_bar(axes: "Axes", row: int, record: Record) -> None:
    from zigma_pl.benchmarks.report import OUT_OF_MEMORY, figure_cell

    times = {which: record[which]["seconds"] for which in PASS_COLOURS}
    start = 0.0
    for which, colour in PASS_COLOURS.items():
        length = 0.0 if times[which] is None else 1000 * times[which]["median"]
        axes.barh(row, length, left=start, color=colour, height=0.6)
        start += length
    text = OUT_OF_MEMORY if None in times.values() else figure_cell(start)
    axes.annotate(text, (start, row), (4, 0), textcoords="offset points", va="center", fontsize=8, color=INK)


def _most_bars(result: "BenchmarkResult", panels: list) -> int:
    return -(-len(result.records) // max(1, len(panels)))


def _gigabytes(record: Record) -> float | None:
    peak = record["peak_memory_bytes"]
    return None if peak is None else peak / GIGABYTE
