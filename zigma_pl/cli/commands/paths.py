"""Plot the scan orders of a token grid: sweep, the eight zigzags, the Hilbert curve and a random order."""

import argparse
from typing import TYPE_CHECKING

import numpy as np

from zigma_pl.cli.commands.figures import FAINT, INK, MUTED, add_out, check_format, save
from zigma_pl.cli.commands.parser import Parser
from zigma_pl.core.ranges import LARGEST_SEED, check_whole_numbers
from zigma_pl.scan.paths import adjacency, named_orders

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

MAX_SIDE = 128  # tokens; on larger grids the lines overlap
NUM_COLUMNS = 4


def main(argv: list[str]) -> int:
    """Run `python -m zigma_pl paths`: plot the orders, print the path of the file and return the exit status.

    Raises:
        UserError: a size or seed is out of range, the image format is unknown, or the file cannot be written.
    """
    options = _parser().parse_args(argv)
    check_whole_numbers("paths", most=MAX_SIDE, height=options.height, width=options.width)
    check_whole_numbers("paths", least=0, most=LARGEST_SEED, seed=options.seed)
    check_format(options.out)
    save(draw_paths(options.height, options.width, options.seed), options.out)
    print(options.out)
    return 0


def draw_paths(height: int, width: int, seed: int = 0) -> "Figure":
    """Return a figure with one panel for each order of a height x width grid, and a legend."""
    import matplotlib
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    colours = ListedColormap(matplotlib.colormaps["plasma"](np.linspace(0, 0.87, 256)))
    panels = named_orders(height, width, seed)
    num_rows = -(-(len(panels) + 1) // NUM_COLUMNS)
    panel_width, panel_height = _panel_size_inch(height, width)
    # With space for the titles above each panel and for the heading.
    figure_size = (NUM_COLUMNS * panel_width, num_rows * (panel_height + 0.4) + 0.4)
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.1)
    figure = Figure(figsize=figure_size, dpi=160, layout=layout, facecolor="white")
    figure.suptitle(f"Scan orders of {height} × {width} tokens", fontsize=14, color=INK, weight="bold")
    all_axes = list(figure.subplots(num_rows, NUM_COLUMNS).flat)
    # The legend is last in the first row, so that the zigzags fill whole rows below it.
    _draw_legend(all_axes.pop(NUM_COLUMNS - 1), colours)
    cell_points = 72 * 0.9 * min(panel_width / width, panel_height / height)
    for axes, (title, order) in zip(all_axes, panels, strict=True):
        adjacent = adjacency(order, height, width)
        _draw_path(axes, np.stack(np.divmod(order, width)[::-1], axis=1), adjacent, colours, cell_points)
        _format_axes(axes, title, f"{_percent(adjacent)} adjacent", height, width)
    return figure


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m zigma_pl paths", description=__doc__)
    parser.add_argument("--height", type=int, default=8, metavar="TOKENS", help="rows of the grid (default: 8)")
    parser.add_argument("--width", type=int, default=8, metavar="TOKENS", help="columns of the grid (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random order (default: 0)")
    add_out(parser, "paths.png")
    return parser


def _panel_size_inch(height: int, width: int) -> tuple[float, float]:
    """Return panel width and height: the grid's aspect ratio, at most 2.5, and larger for sides above 32 tokens."""
    longest = min(2.9 + 0.04 * max(0, max(height, width) - 32), 6.0)
    shape = min(max(height / width, 0.4), 2.5)
    return (longest, longest * shape) if shape <= 1 else (max(longest / shape, 2.3), longest)


def _draw_path(axes: "Axes", points: np.ndarray, adjacent: float, colours: "Colormap", cell_points: float) -> None:
    """Plot the (L, 2) points (x, y) of an order; `cell_points` is the size of a grid cell in typographic points."""
    from matplotlib.collections import LineCollection

    num_steps = len(points) - 1
    # Orders with jumps cross themselves: thinner, translucent lines keep them legible.
    width_of_cell, alpha = (0.2, 1.0) if adjacent == 1 else (0.1, 1.0 if adjacent > 0.5 else 0.75)
    lines = LineCollection(
        [points[step : step + 2] for step in range(num_steps)],
        array=np.linspace(0, 1, num_steps),
        cmap=colours,
        linewidths=min(max(cell_points * width_of_cell, 0.5), 2.6),
        alpha=alpha,
        capstyle="round",
    )
    axes.add_collection(lines)
    _mark_ends(axes, points, colours, marker_size=min(max(cell_points * 0.5, 5.5), 9.0))


def _mark_ends(axes: "Axes", points: np.ndarray, colours: "Colormap", marker_size: float) -> None:
    for point, marker, colour in ((points[0], "o", colours(0.0)), (points[-1], "s", colours(1.0))):
        axes.plot(*point, marker, color=colour, ms=marker_size, mec="white", mew=1.0, zorder=3, clip_on=False)


def _format_axes(axes: "Axes", title: str, subtitle: str, height: int, width: int) -> None:
    """Frame the grid, with row 0 at the top and without ticks, and write the titles above it."""
    axes.set(xlim=(-0.75, width - 0.25), ylim=(height - 0.25, -0.75), xticks=[], yticks=[], aspect="equal")
    for spine in axes.spines.values():
        spine.set(color=FAINT, linewidth=0.8)
    axes.set_title(subtitle, fontsize=8, color=MUTED, pad=5)
    axes.annotate(title, (0.5, 1), (0, 18), "axes fraction", "offset points", ha="center", fontsize=9.5, color=INK)


def _percent(fraction: float) -> str:
    return "100 %" if fraction == 1 else f"{100 * fraction:.1f} %"


def _draw_legend(axes: "Axes", colours: "Colormap") -> None:
    """Explain the panels: the colour along the order and the markers of its ends."""
    axes.axis("off")
    axes.imshow(np.linspace(0, 1, 256)[None], cmap=colours, extent=(0.1, 0.9, 0.645, 0.685), aspect="auto")
    ends = np.array([(0.1, 0.665), (0.9, 0.665)])
    _mark_ends(axes, ends, colours, marker_size=9.0)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    for x, y, side, text in (
        (0.1, 0.58, "left", "first token"),
        (0.9, 0.58, "right", "last token"),
        (0.5, 0.4, "center", "adjacent: consecutive tokens\nthat share an edge"),
    ):
        axes.text(x, y, text, ha=side, va="top", fontsize=9, color=INK, linespacing=1.5)
