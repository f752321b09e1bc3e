"""SVG charts: lines over samples seen or time, a dot for each seed of an experiment, and scan orders.

Matplotlib plots them in the colours of light mode. In the SVG file, each colour is replaced by a CSS variable with a
second value for dark mode.
"""

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
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
_STYLE = 2  # of the charts: increase it to replace the charts of earlier reports
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
    """A chart, plotted when its file is needed.

    title: heading of the chart.
    text: description of its content.
    size_inch: width and height at which its font size matches the page.
    plot: plots it.
    data: all that the plot shows.
    """

    title: str
    text: str
    size_inch: tuple[float, float]
    plot: Callable[["Figure"], None]
    data: object

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height on the page."""
        width, height = self.size_inch
        return round(96 * width), round(96 * height)

    @property
    def key(self) -> str:
        """Hash of the data: charts with the same key are equal."""
        shown = repr((_STYLE, self.title, self.size_inch, self.data))
        return hashlib.sha256(shown.encode()).hexdigest()[:10]

    @cached_property
    def svg(self) -> str:
        """Content of the SVG file."""
        from matplotlib.figure import Figure

        drawn = Figure(figsize=self.size_inch)
        self.plot(drawn)
        return _svg(drawn)


def line_chart(
    title: str, x_label: str, y_label: str, series: Sequence[Series], *, log_x: bool = False
) -> Chart | None:
    """Return a line chart, with a logarithmic y axis if the values span a wide range; None without points.

    With `log_x`, the x axis is logarithmic, too, if the ends of the lines span a wide range.
    """
    shown = [Series(line.name, line.index, _finite(line.points)) for line in series]
    shown = [line for line in shown if line.points]
    ys = [y for line in shown for _, y in line.points]
    if not ys:
        return None

    ends_x = [line.points[-1][0] for line in shown]
    has_log_x = log_x and min(ends_x) > 0 and max(ends_x) / min(ends_x) > LOGARITHMIC_FROM

    def plot(drawn: "Figure") -> None:
        axes = _axes(drawn)
        for line in shown:
            axes.plot(
                [x for x, _ in line.points],
                [y for _, y in line.points],
                color=LIGHT[line.index % len(LIGHT)],
                linestyle="--" if line.index >= len(LIGHT) else "-",
                marker="o" if len(line.points) == 1 else "",
            )
        if has_log_x:
            axes.set_xscale("log")
        else:
            axes.set_xlim(left=0)
            _shorten_thousands(axes)
        axes.set_xlabel(x_label, color=MUTED[0])
        if min(ys) > 0 and max(ys) / min(ys) > LOGARITHMIC_FROM:
            _make_logarithmic(axes)
        axes.grid(axis="y", color=FAINT[0])

    ends = [f"{line.name} ends at {figure(line.points[-1][1])}" for line in shown]
    text = f"{title}. {y_label} against {x_label}: {'; '.join(ends)}."
    return Chart(title, text, (_WIDTH_INCH, 2.8), plot, ("lines", x_label, shown))


def dot_chart(title: str, x_label: str, series: Sequence[Series]) -> Chart | None:
    """Return a chart with a row for each experiment and a dot at the value of each seed."""
    shown = [Series(row.name, row.index, _finite(row.points)) for row in series]
    if not any(row.points for row in shown):
        return None
    means = [figure(sum(x for x, _ in row.points) / len(row.points)) if row.points else "not run" for row in shown]

    def plot(drawn: "Figure") -> None:
        axes = _axes(drawn)
        for height, row in enumerate(shown):
            values = [x for x, _ in row.points]
            axes.scatter(values, [height] * len(values), color=LIGHT[row.index % len(LIGHT)], alpha=0.75)
        _shorten_thousands(axes)
        labels = [_plain(f"{row.name}  {mean}") for row, mean in zip(shown, means, strict=True)]
        axes.set_yticks(range(len(shown)), labels, color=INK[0])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlabel(x_label, color=MUTED[0])
        axes.grid(color=FAINT[0])

    words = [f"{row.name} {', '.join(figure(x) for x, _ in row.points) or 'without a number'}" for row in shown]
    text = f"{title}. {x_label}: {'; '.join(words)}."
    return Chart(title, text, (_WIDTH_INCH, 0.7 + 0.3 * len(shown)), plot, ("dots", x_label, shown))


def path_chart(title: str, order: np.ndarray, side: int, adjacent: float) -> Chart:
    """Return a plot of a scan order of side x side tokens; `adjacent` is its fraction of adjacent steps."""

    def plot(drawn: "Figure") -> None:
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
    text = f"Scan order {title}: {fraction}"
    return Chart(f"{title}; {fraction}", text, (1.6, 1.6), plot, ("path", side, order.tolist()))


def _axes(drawn: "Figure") -> "Axes":
    drawn.set_layout_engine("constrained")
    axes = drawn.subplots()
    axes.ticklabel_format(useOffset=False)
    axes.tick_params(length=0, labelcolor=MUTED[0])
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def _shorten_thousands(axes: "Axes") -> None:
    """Label the x axis with numbers such as 20k, if it passes 1,000: the format has letters for small numbers too."""
    from matplotlib.ticker import EngFormatter

    if axes.get_xlim()[1] >= 1000:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _make_logarithmic(axes: "Axes") -> None:
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1e4 else (1,)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.minorticks_off()


def _svg(drawn: "Figure") -> str:
    """Return a figure as SVG, with selectable text and colours for dark mode."""
    import matplotlib

    content = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "zigma_pl"}):  # reproducible files
        drawn.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub("|".join(_IN_DARK), lambda found: f"var(--c{found[0][1:]})", content.getvalue())
    svg = re.sub(r'="[^"]*"', _rounded, svg)
    light = " ".join(f"--c{colour[1:]}: {colour};" for colour in _IN_DARK)
    dark = " ".join(f"--c{colour[1:]}: {in_dark};" for colour, in_dark in _IN_DARK.items())
    style = f":root {{ {light} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    return svg.replace("<defs>", f"<style>{style}</style>\n <defs>", 1)


def _rounded(attribute: re.Match[str]) -> str:
    """Return an SVG attribute whose coordinates are rounded to 0.01 px, a third of the size of the file."""
    return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", attribute[0])


def _plain(text: str) -> str:
    """Return text with escaped dollar signs, which matplotlib would read as a formula."""
    return text.replace("$", r"\$")


def _finite(points: Points) -> Points:
    return [(x, y) for x, y in points if abs(x) < _LARGEST and abs(y) < _LARGEST]  # False for NaN
