"""The figures of `python -m zigma_pl orders`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zigma_pl.cli.commands.figures import FAINT, INK, MUTED
from zigma_pl.scan.promises import DISTANCES, Promises

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOUR = "#5b3fa8"


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


def draw_agreement(names: Sequence[str], losses: Sequence[float], predictions: Sequence[float]) -> "Figure":
    """Return a figure with a point for each experiment: its measured loss against the one fitted to the others."""
    figure = _figure((7.5, 6.5))
    figure.suptitle("Validation loss, predicted and measured", fontsize=13, color=INK, weight="bold")
    axes = figure.subplots()
    axes.plot(predictions, losses, "o", color=COLOUR, ms=5)
    ends = [min(*predictions, *losses), max(*predictions, *losses)]
    axes.plot(ends, ends, color=FAINT, linewidth=1, zorder=0)
    for name, x, y in zip(names, predictions, losses, strict=True):
        axes.annotate(name, (x, y), (5, -3), textcoords="offset points", fontsize=7.5, color=MUTED)
    axes.set_xlabel("predicted, on the line that is fitted to the other experiments", color=MUTED)
    axes.set_ylabel("measured", color=MUTED)
    _format(axes)
    return figure


def _figure(size_inch: tuple[float, float]) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=size_inch, dpi=160, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.1), facecolor="white")


def _format(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=MUTED, labelsize=8)
