"""SVG charts: lines over samples seen or time, a dot for each seed of an experiment, and scan orders.

Matplotlib plots them in the colours of light mode. In the SVG file, each colour is replaced by a CSS variable with a
second value for dark mode.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from zigma_pl.suite.report.curves import Points
from zigma_pl.suite.report.scores import figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Hues that colour-blind readers can distinguish; slightly lighter in dark mode.
LIGHT = ("#2a78d6", "#d9541e", "#128a60", "#a87000", "#c2457d", "#4a3aa7", "#157315", "#c92f2f")
DARK = ("#5a9df0", "#f0824f", "#35b98a", "#d9a228", "#e47fab", "#a297f2", "#5cb85c", "#f07878")
INK, MUTED, FAINT = ("#1c1c22", "#ececf0"), ("#5c5c68", "#a5a5b0"), ("#dddde3", "#3a3a42")
_IN_DARK = dict([*zip(LIGHT, DARK, strict=True), INK, MUTED, FAINT])
LOGARITHMIC_FROM = 5.0  # minimum ratio of largest to smallest value for a logarithmic axis
_LARGEST = 1e100  # larger values are not plotted
_WIDTH_INCH = 4.6
_NUM_PATH_PARTS = 6  # parts of a scan order, plotted with increasing opacity


@dataclass(frozen=True)
class Series:
    """A line, or the dots of an experiment.

    name: name of the experiment.
    index: index of the experiment in its table, which determines the colour.
    points: (x, y).
    """

    name: str
    index: int
    points: Points


@dataclass(frozen=True)
class Chart:
    """A chart.

    title: heading of the chart.
    text: description of its content.
    svg: content of the SVG file.
    size_px: width and height at which its font size matches the page.
    """

    title: str
    text: str
    svg: str
    size_px: tuple[int, int]


def line_chart(title: str, x_label: str, y_label: str, series: Sequence[Series]) -> Chart | None:
    """Return a line chart, with a logarithmic y axis if the values span a wide range; None without points."""
    shown = [Series(line.name, line.index, _finite(line.points)) for line in series]
    shown = [line for line in shown if line.points]
    ys = [y for line in shown for _, y in line.points]
    if not ys:
        return None
    drawn, axes = _axes(2.8)
    for line in shown:
        axes.plot(
            [x for x, _ in line.points],
            [y for _, y in line.points],
            color=LIGHT[line.index % len(LIGHT)],
            linestyle="--" if line.index >= len(LIGHT) else "-",
            marker="o" if len(line.points) == 1 else "",
        )
    axes.set_xlim(left=0)
    axes.set_xlabel(x_label, color=MUTED[0])
    if min(ys) > 0 and max(ys) / min(ys) > LOGARITHMIC_FROM:
        _make_logarithmic(axes)
    axes.grid(axis="y", color=FAINT[0])
    ends = [f"{line.name} ends at {figure(line.points[-1][1])}" for line in shown]
    return Chart(title, f"{title}. {y_label} against {x_label}: {'; '.join(ends)}.", *_svg(drawn))


def dot_chart(title: str, x_label: str, series: Sequence[Series]) -> Chart | None:
    """Return a chart with a row for each experiment and a dot at the value of each seed."""
    shown = [Series(row.name, row.index, _finite(row.points)) for row in series]
    if not any(row.points for row in shown):
        return None
    drawn, axes = _axes(0.7 + 0.3 * len(shown))
    for height, row in enumerate(shown):
        values = [x for x, _ in row.points]
        axes.scatter(values, [height] * len(values), color=LIGHT[row.index % len(LIGHT)], alpha=0.75)
    means = [figure(sum(x for x, _ in row.points) / len(row.points)) if row.points else "not run" for row in shown]
    labels = [_plain(f"{row.name}  {mean}") for row, mean in zip(shown, means, strict=True)]
    axes.set_yticks(range(len(shown)), labels, color=INK[0])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel(x_label, color=MUTED[0])
    axes.grid(color=FAINT[0])
    words = [f"{row.name} {', '.join(figure(x) for x, _ in row.points) or 'without a number'}" for row in shown]
    return Chart(title, f"{title}. {x_label}: {'; '.join(words)}.", *_svg(drawn))


def path_chart(title: str, order: np.ndarray, side: int, adjacent: float) -> Chart:
    """Return a plot of a scan order of side x side tokens; `adjacent` is its fraction of adjacent steps."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(1.6, 1.6))
    axes = drawn.add_axes((0.02, 0.02, 0.96, 0.96))
    y, x = np.divmod(order, side)
    bounds = np.linspace(0, len(order) - 1, _NUM_PATH_PARTS + 1).round().astype(int)
    for part, (start, end) in enumerate(pairwise(bounds)):
        alpha = 0.35 + 0.65 * part / (_NUM_PATH_PARTS - 1)
        axes.plot(x[start : end + 1], y[start : end + 1], color=LIGHT[0], alpha=alpha, linewidth=1.8)
    axes.plot(x[0], y[0], "o", x[-1], y[-1], "s", color=LIGHT[1], markersize=5)
    axes.set(xlim=(-0.6, side - 0.4), ylim=(side - 0.4, -0.6), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_color(FAINT[0])
    fraction = f"{100 * adjacent:.0f} % adjacent"
    return Chart(f"{title}; {fraction}", f"Scan order {title}: {fraction}", *_svg(drawn))


def _axes(height_inch: float) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    drawn = Figure(figsize=(_WIDTH_INCH, height_inch), layout="constrained")
    axes = drawn.subplots()
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.tick_params(length=0, labelcolor=MUTED[0])
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return drawn, axes


def _make_logarithmic(axes: "Axes") -> None:
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1e4 else (1,)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.minorticks_off()


def _svg(drawn: "Figure") -> tuple[str, tuple[int, int]]:
    """Return a figure as SVG, with selectable text and colours for dark mode, and its size in pixels."""
    import matplotlib

    content = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "zigma_pl"}):  # reproducible files
        drawn.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub("|".join(_IN_DARK), lambda found: f"var(--c{found[0][1:]})", content.getvalue())
    light = " ".join(f"--c{colour[1:]}: {colour};" for colour in _IN_DARK)
    dark = " ".join(f"--c{colour[1:]}: {in_dark};" for colour, in_dark in _IN_DARK.items())
    style = f":root {{ {light} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    width, height = (round(96 * inches) for inches in drawn.get_size_inches())
    return svg.replace("<defs>", f"<style>{style}</style>\n <defs>", 1), (width, height)


def _plain(text: str) -> str:
    """Return text with escaped dollar signs, which matplotlib would read as a formula."""
    return text.replace("$", r"\$")


def _finite(points: Points) -> Points:
    return [(x, y) for x, y in points if abs(x) < _LARGEST and abs(y) < _LARGEST]  # False for NaN
