"""Charts as SVG that is part of the page: lines over samples seen or time, and a dot for each seed of a row.

They take their colours from the page (`style.py`), so they are right in light and dark, and are drawn small, so that
their text is legible on a narrow screen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from zigma_pl.report.curves import Points
from zigma_pl.report.markup import Markup, join, tag
from zigma_pl.report.scores import figure

WIDTH, HEIGHT = 440, 270
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 10, 42
NUM_COLOURS = 8
LOGARITHMIC_FROM = 5.0  # ratio of the largest to the smallest value
_ROW_HEIGHT = 34


@dataclass(frozen=True)
class Series:
    """One line, or the dots of one row.

    name: of the row.
    place: the row's place in its table, which gives the colour.
    points: (x, y).
    """

    name: str
    place: int
    points: Points


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high`, shown from `start` to `end` of the picture."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Return where a value is in the picture."""
        low, high, value = (math.log(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Return round values: about five, or 1, 2 and 5 of each power of ten."""
        if self.logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            factors = (1, 2, 5) if len(powers) <= 4 else (1,)
            found = [factor * 10.0**power for power in powers for factor in factors]
        else:
            step = _round_step((self.high - self.low) / 5)
            first = math.ceil(self.low / step - 1e-9)
            found = [count * step for count in range(first, first + 12)]
        return [value for value in found if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)]


def line_chart(title: str, x_label: str, y_label: str, series: Sequence[Series]) -> Markup | None:
    """Return lines in one picture, with a logarithmic y axis where they span a lot; None without points."""
    series = [Series(line.name, line.place, _finite(line.points)) for line in series]
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points]
    if not xs:
        return None
    x_axis = _axis(xs, LEFT, WIDTH - RIGHT, from_zero=True)
    logarithmic = min(ys) > 0 and max(ys) / min(ys) > LOGARITHMIC_FROM
    y_axis = _axis(ys, HEIGHT - BOTTOM, TOP, logarithmic=logarithmic)
    lines = [_line(line, x_axis, y_axis) for line in series if line.points]
    ends = [f"{line.name} ends at {figure(line.points[-1][1])}" for line in series if line.points]
    return _picture(title, f"{y_label} against {x_label}: {'; '.join(ends)}", HEIGHT, [
        _horizontal_grid(y_axis, x_axis),
        _x_ticks(x_axis, HEIGHT - BOTTOM),
        _x_label(x_label, HEIGHT),
        lines,
    ])  # fmt: skip


def dot_chart(title: str, x_label: str, series: Sequence[Series]) -> Markup | None:
    """Return a line for each row with a dot at the x of each of its points, one for each seed, and their mean."""
    series = [Series(row.name, row.place, _finite(row.points)) for row in series]
    xs = [x for row in series for x, _ in row.points]
    if not xs:
        return None
    height = TOP + _ROW_HEIGHT * len(series) + BOTTOM
    axis = _axis(xs, RIGHT, WIDTH - RIGHT)
    rows = [_dots(row, axis, TOP + _ROW_HEIGHT * (number + 1) - 8) for number, row in enumerate(series)]
    words = [f"{row.name} {', '.join(figure(x) for x, _ in row.points) or 'without a number'}" for row in series]
    return _picture(title, f"{x_label}: {'; '.join(words)}", height, [
        _vertical_grid(axis, height),
        rows,
        _x_ticks(axis, height - BOTTOM),
        _x_label(x_label, height),
    ])  # fmt: skip


def legend(series: Sequence[tuple[str, int]]) -> Markup:
    """Return names with the colours of their lines."""
    return tag("ul", [tag("li", swatch(place), name) for name, place in series], class_="legend")


def swatch(place: int) -> Markup:
    """Return a short stroke in the colour of a row."""
    line = tag("line", x1=1, y1=5, x2=21, y2=5, class_=_class("line", place))
    return tag("svg", line, viewBox="0 0 22 10", width=22, height=10, aria_hidden="true", class_="swatch")


def compact(value: float, num_digits: int = 3) -> str:
    """Write a tick: 0.05, 200, 1.5k, 24M."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.{num_digits}g}{unit}"
    return f"{value:.{num_digits}g}"


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Write ticks with as many digits as tell them apart, at least three."""
    labels: list[str] = []
    for num_digits in range(3, 9):
        labels = [compact(value, num_digits) for value in ticks]
        if len(set(labels)) == len(ticks):
            break
    return labels


def _picture(title: str, description: str, height: float, parts: Sequence[Markup | list[Markup]]) -> Markup:
    svg = tag("svg", *parts, viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=f"{title}. {description}.")
    return tag("figure", tag("figcaption", title), svg, class_="chart")


def _class(kind: str, place: int) -> str:
    return f"{kind} s{place % NUM_COLOURS}" + (" dashed" if place >= NUM_COLOURS else "")


def _finite(points: Points) -> Points:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _axis(
    values: Sequence[float], start: float, end: float, *, from_zero: bool = False, logarithmic: bool = False
) -> Axis:
    low, high = min(values), max(values)
    if logarithmic:
        return Axis(low / 1.1, high * 1.1, start, end, logarithmic=True)
    if from_zero:
        return Axis(0.0, high or 1.0, start, end)
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(low - margin, high + margin, start, end)


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _line(series: Series, x_axis: Axis, y_axis: Axis) -> Markup:
    places = [(x_axis(x), y_axis(y)) for x, y in series.points]
    if len(places) == 1:
        (x, y), name = places[0], tag("title", series.name)
        return tag("circle", name, cx=_n(x), cy=_n(y), r=3.5, class_=_class("dot", series.place))
    points = " ".join(f"{_n(x)},{_n(y)}" for x, y in places)
    return tag("polyline", tag("title", series.name), points=points, class_=_class("line", series.place))


def _dots(series: Series, axis: Axis, y: float) -> Markup:
    values = [x for x, _ in series.points]
    mean = figure(sum(values) / len(values)) if values else "not run"
    return join(
        tag("text", series.name, x=RIGHT, y=y - 9, class_="name"),
        tag("text", mean, x=WIDTH - RIGHT, y=y - 9, text_anchor="end", class_="name"),
        tag("line", x1=RIGHT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"),
        [tag("circle", cx=_n(axis(x)), cy=y, r=4.5, class_=_class("dot", series.place)) for x in values],
    )


def _horizontal_grid(y_axis: Axis, x_axis: Axis) -> list[Markup]:
    parts = []
    ticks = y_axis.ticks()
    for value, label in zip(ticks, tick_labels(ticks), strict=True):
        y = _n(y_axis(value))
        parts.append(tag("line", x1=x_axis.start, x2=x_axis.end, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", label, x=LEFT - 6, y=y, dy="0.35em", text_anchor="end"))
    return parts


def _vertical_grid(axis: Axis, height: float) -> list[Markup]:
    places = [_n(axis(value)) for value in axis.ticks()]
    return [tag("line", x1=x, x2=x, y1=TOP, y2=height - BOTTOM, class_="grid") for x in places]


def _x_ticks(axis: Axis, y: float) -> list[Markup]:
    ticks = axis.ticks()
    return [
        tag("text", label, x=_n(x), y=y + 16, text_anchor="end" if x > axis.end - 12 else "middle")
        for x, label in zip(map(axis, ticks), tick_labels(ticks), strict=True)
    ]


def _x_label(text: str, height: float) -> Markup:
    return tag("text", text, x=WIDTH / 2, y=height - 6, text_anchor="middle", class_="label")


def _n(value: float) -> str:
    return f"{value:.1f}"
