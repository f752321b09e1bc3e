"""Compare sets of scan orders before training: reach, regularity, directions, locality and cost.

A set is a scheme by name, a .npy or .json file of orders, or the class path of a scheme. docs/orders.md explains the
numbers.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

import numpy as np

from zigma_pl.cli.commands.figures import FAINT, INK, MUTED, add_out, check_format, save
from zigma_pl.cli.commands.imports import add_allow_import
from zigma_pl.cli.commands.parser import Parser
from zigma_pl.core.class_paths import build_described
from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.scan.paths import SchemeName
from zigma_pl.scan.promises import DISTANCES, Promises, promises
from zigma_pl.scan.schedule import ScanConfig
from zigma_pl.scan.schemes import OrdersFile, Scheme
from zigma_pl.scan.shapes import SHAPES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_SIDE = 256  # tokens
MAX_DEPTH = 1000
COLOUR = "#5b3fa8"


def main(argv: list[str]) -> int:
    """Run `python -m zigma_pl orders`: print a table, plot it and return the exit status.

    Raises:
        UserError: a scheme, size or file is wrong; see the message.
    """
    options = _parser().parse_args(argv)
    check_whole_numbers("orders", most=MAX_SIDE, height=options.height, width=options.width)
    check_whole_numbers("orders", most=MAX_DEPTH, depth=options.depth)
    check_format(options.out)
    results = {
        label: promises(scan.orders(options.height, options.width), options.height, options.width, options.depth)
        for label, scan in chosen_scans(options).items()
    }
    print("\n".join(table(results)))
    heading = f"Scan orders of {options.height} × {options.width} tokens, {options.depth} layers"
    save(draw_promises(results, heading), options.out)
    print(options.out)
    return 0


def chosen_scans(options: argparse.Namespace) -> dict[str, ScanConfig]:
    """Return the sets of orders that the options name, by label: every scheme with every number of orders.

    Raises:
        UserError: a scheme does not exist, or a file cannot be read.
    """
    scans: dict[str, ScanConfig] = {}
    for text in options.scans or _schemes_for(options.height, options.width):
        scheme = parse_scheme(text, options.allow_import)
        for num_orders in options.num_orders if options.indices is None else [len(options.indices)]:
            indices = None if options.indices is None else tuple(options.indices)
            scan = ScanConfig(scheme, num_orders, options.seed, indices=indices, both_ways=options.both_ways)
            ending = f"-{scan.num_orders}" if indices is None else f" {list(indices)}"
            scans[text + ending + (", both ways" if scan.both_ways else "")] = scan
    return scans


def parse_scheme(text: str, allow_imports: Sequence[str]) -> SchemeName | Scheme:
    """Return a scheme from its name, the path of a file of orders or the class path of a `Scheme` without options.

    Raises:
        UserError: the scheme is unknown, the file cannot be read or the class is not allowed.
    """
    for name in get_args(SchemeName):
        if text == name:
            return name
    if text.endswith((".npy", ".json")):
        return OrdersFile(text)
    if "." not in text:
        names = ", ".join(get_args(SchemeName))
        raise UserError(f"unknown scheme {text!r}: choose {names}, a .npy or .json file, or a class path")
    return build_described({"class_path": text}, Scheme, allow_imports)  # type: ignore[type-abstract]


def table(results: dict[str, Promises]) -> list[str]:
    """Return the lines of a table with one line for each set of orders."""
    width = max(map(len, results))
    near = "  ".join(f"{distance:>5}" for distance in DISTANCES)
    lines = [
        f"{'':<{width}}  {'':>5}  {'':>10}  {'':>10}  locality at distance",
        f"{'orders':<{width}}  reach  regularity  directions  {near}  cost  index KB",
    ]
    for label, each in results.items():
        near = "  ".join(f"{value:.3f}" for value in each.locality)
        lines.append(
            f"{label:<{width}}  {each.reach:.3f}  {each.regularity:>10.3f}  {each.directions:>10.2f}  {near}  "
            f"{each.cost:>4}  {each.index_bytes / 1000:>8,.1f}"
        )
    return lines


def draw_promises(results: dict[str, Promises], heading: str) -> "Figure":
    """Return a figure with a bar for each set of orders in every panel."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

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
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.1)
    figure = Figure(figsize=(13, 0.3 * len(results) + 1.6), dpi=160, layout=layout, facecolor="white")
    figure.suptitle(heading, fontsize=13, color=INK, weight="bold")
    for index, (axes, (title, values)) in enumerate(zip(figure.subplots(1, len(panels)), panels.items(), strict=True)):
        bars = axes.barh(range(len(values)), values, color=COLOUR, height=0.7)
        axes.bar_label(bars, [f"{value:.3g}" for value in values], padding=3, fontsize=7.5, color=INK)
        axes.set_yticks(range(len(values)), list(results))
        axes.set_ylim(-0.7, len(values) - 0.3)
        axes.set_xlim(0, 1.3 * max(np.max(values), 1e-3))
        axes.set_title(title, fontsize=10, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(colors=MUTED, labelsize=8, labelleft=index == 0)
        axes.invert_yaxis()
    return figure


def _schemes_for(height: int, width: int) -> list[str]:
    """Return the names of the schemes that exist for a grid."""
    return [name for name in get_args(SchemeName) if name not in SHAPES or SHAPES[name].exists_for(height, width)]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m zigma_pl orders", description=__doc__)
    parser.add_argument(
        "scans",
        nargs="*",
        metavar="SCHEME",
        help="name, .npy or .json file of orders, or class path (default: all names that exist for the grid)",
    )
    parser.add_argument("--height", type=int, default=32, metavar="TOKENS", help="rows of the grid (default: 32)")
    parser.add_argument("--width", type=int, default=32, metavar="TOKENS", help="columns of the grid (default: 32)")
    parser.add_argument("--depth", type=int, default=16, metavar="LAYERS", help="number of layers (default: 16)")
    parser.add_argument(
        "--num_orders",
        type=int,
        nargs="+",
        default=[8],
        metavar="K",
        help="numbers of orders that the layers cycle through, each compared (default: 8)",
    )
    parser.add_argument(
        "--indices", type=int, nargs="+", metavar="INDEX", help="use these orders of each scheme, not the first K"
    )
    parser.add_argument("--both_ways", action="store_true", help="follow each order by its reverse")
    parser.add_argument("--seed", type=int, default=0, help="seed of random orders (default: 0)")
    add_allow_import(parser)
    add_out(parser, "orders.png")
    return parser
