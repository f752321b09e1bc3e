"""The figures of `python -m zigma_pl orders`."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from zigma_pl.cli.commands.figures import FAINT, INK, MUTED
from zigma_pl.scan.promises import DISTANCES, Promises

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOUR = "#5b3fa8"
LATE_COLOUR = "#c2571a"


def draw_promises(results: dict[str, Promises], predictions: dict[str, float], heading: str) -> "Figure":
    """Return a figure with a panel for each number and a bar for each set of orders in it.

    Args:
        results: the numbers by label.
        predictions: predicted losses by label, empty if there are none.
        heading: title of the figure.
    """
    panels = {
        "reach": [each.reach for each in results.values()],
        "regularity": [each.regularity for each in results.values()],
        "directions": [each.directions for each in results.values()],
        **{
            f"locality, {distance} cells": [each.locality[index] for each in results.values()]
            for index, distance in enumerate(DISTANCES)
            if distance > 1
        },
    }
    if predictions:
        panels["predicted loss"] = list(predictions.values())
    figure = _figure((2.2 * len(panels), 0.3 * len(results) + 1.6))
    figure.suptitle(heading, fontsize=13, color=INK, weight="bold")
    for index, (axes, (title, values)) in enumerate(zip(figure.subplots(1, len(panels)), panels.items(), strict=True)):
        bars = axes.barh(range(len(values)), values, color=COLOUR, height=0.7)
        axes.bar_label(bars, [f"{value:.3g}" for value in values], padding=3, fontsize=7.5, color=INK)
        axes.set_yticks(range(len(values)), list(results))
        axes.set_ylim(len(values) - 0.3, -0.7)
        axes.set_xlim(0, 1.3 * max(*values, 1e-3))
        axes.set_title(title, fontsize=10, color=INK)
        _format(axes)
        axes.tick_params(labelleft=index == 0)
    return figure


class Panel(NamedTuple):
    """The experiments of a set of records.

    names: their names.
    losses: measured.
    predictions: predicted losses.
    held_out: whether they were run after they had been predicted.
    """

    names: Sequence[str]
    losses: Sequence[float]
    predictions: Sequence[float]
    held_out: Sequence[bool]


def draw_agreement(panels: Mapping[str, Panel]) -> "Figure":
    """Return a figure with a panel for each set of records, by label, and a point in it for each experiment.

    Up to three panels share a row. The line is fitted to the experiments that are not held out, if there are at least
    two.
    """
    num_columns = min(len(panels), 3)
    num_rows = math.ceil(len(panels) / num_columns)
    figure = _figure((7.5 * num_columns, 7.5 * num_rows))
    figure.suptitle("Validation loss, predicted and measured", fontsize=13, color=INK, weight="bold")
    for index, (label, panel) in enumerate(panels.items()):
        axes = figure.add_subplot(num_rows, num_columns, index + 1)
        losses, predictions = np.array(panel.losses), np.array(panel.predictions)
        late = np.array(panel.held_out)
        if np.unique(predictions[~late]).size > 1:
            line = np.polyfit(predictions[~late], losses[~late], 1)
            ends = np.array([predictions.min(), predictions.max()])
            axes.plot(ends, np.polyval(line, ends), color=FAINT, linewidth=1, zorder=0)
        for chosen, marker, colour, kind in (
            (~late, "o", COLOUR, "known before"),
            (late, "D", LATE_COLOUR, "held out"),
        ):
            if chosen.any():
                axes.plot(predictions[chosen], losses[chosen], marker, color=colour, ms=5, label=kind)
        _label(axes, [re.sub(r"^table\w+?_", "", name) for name in panel.names], predictions, losses)
        axes.margins(x=0.2)
        axes.set_title(label, fontsize=10, color=INK)
        axes.set_xlabel("predicted loss", color=MUTED)
        axes.set_ylabel("measured loss", color=MUTED)
        if late.any():
            axes.legend(frameon=False, fontsize=8)
        _format(axes)
    return figure


def _label(axes: "Axes", names: Sequence[str], x: np.ndarray, y: np.ndarray) -> None:
    """Name the points (x, y) beside them, at the nearest height at which a label covers no point and no other label."""
    letter, line = 5.0, 9.0  # width of a letter and height of a line, in typographic points, like all lengths below
    points = np.stack([345 / (np.ptp(x) or 1) * x, 415 / (np.ptp(y) or 1) * y], axis=1).tolist()
    taken = [(across - 4, across + 4, up) for across, up in points]  # left, right, height of all points and labels
    for index in np.argsort(y).tolist():
        across, up = points[index]
        width = letter * len(names[index])
        for step in range(4 * len(names)):
            height = up + line / 2 * (step // 4) * (1 if step % 4 < 2 else -1)
            left = across + (7 if step % 2 == 0 else -7 - width)
            if all(end <= left or left + width <= start or abs(at - height) >= line for start, end, at in taken):
                break
        taken.append((left, left + width, height))
        right_of_point = left > across
        axes.annotate(
            names[index],
            (x[index], y[index]),
            (7 if right_of_point else -7, height - up),
            textcoords="offset points",
            ha="left" if right_of_point else "right",
            va="center",
            fontsize=7.5,
            color=MUTED,
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2},
        )


def _figure(size_inch: tuple[float, float]) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=size_inch, dpi=160, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.1), facecolor="white")


def _format(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=MUTED, labelsize=8)
