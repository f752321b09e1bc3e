"""Compare sets of scan orders before training: reach, regularity, directions, locality, cost and predicted loss.

A set is a scheme by name, a .npy or .json file of orders, the class path of a scheme, or an experiment's .yaml file.
docs/orders.md explains the numbers.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zigma_pl.cli.commands.figures import add_out, check_format, save
from zigma_pl.cli.commands.imports import add_allow_import
from zigma_pl.cli.commands.order_charts import draw_promises
from zigma_pl.cli.commands.order_judge import compare_with_records
from zigma_pl.cli.commands.order_sets import chosen_sets, layer_templates
from zigma_pl.cli.commands.parser import Parser
from zigma_pl.core.errors import UserError
from zigma_pl.core.files import written_whole
from zigma_pl.core.ranges import check_numbers, check_whole_numbers
from zigma_pl.scan.fields import SPEED
from zigma_pl.scan.layers import REFERENCE_RATES, Layer, cycled_layers, whole_path
from zigma_pl.scan.prediction import TIMES, decay_rates, predicted_loss
from zigma_pl.scan.promises import DISTANCES, Promises, promises
from zigma_pl.scan.search import TIME_FIRST, order_pool, search

MAX_SIDE = 256  # tokens
MAX_DEPTH = 1000
MAX_PATCH_SIZE = 64
MAX_FRAMES = 256
MAX_HEADS = 64
MAX_SEARCHED = 64
MAX_SPEED = 1e6
SEARCH_TIMES = (0.2, 0.5, 0.8)  # fewer than for a prediction, to try more sets


def main(argv: list[str]) -> int:
    """Run `python -m zigma_pl orders`: print a table, plot it and return the exit status.

    Raises:
        UserError: a scheme, size or file is wrong; see the message.
    """
    options = _parser().parse_args(argv)
    check_whole_numbers("orders", most=MAX_SIDE, height=options.height, width=options.width)
    check_whole_numbers("orders", most=MAX_DEPTH, depth=options.depth)
    check_whole_numbers("orders", most=MAX_PATCH_SIZE, patch_size=options.patch_size)
    check_whole_numbers("orders", most=MAX_FRAMES, frames=options.frames)
    check_whole_numbers("orders", most=MAX_DEPTH, attention_every=options.attention_every)
    check_whole_numbers("orders", most=MAX_HEADS, num_heads=options.num_heads)
    check_numbers("orders", least=0, most=MAX_SPEED, speed=options.speed)
    if options.plan is not None and options.frames is None:
        raise UserError("orders --plan: needs a clip: pass --frames")
    check_format(options.out)
    rates = REFERENCE_RATES if options.reference is None else decay_rates(options.reference)
    if options.search is not None:
        check_whole_numbers("orders", most=MAX_SEARCHED, search=options.search)
        check_whole_numbers("orders", least=0, num_trials=options.num_trials)
        _search(options, rates)
        return 0
    save(compare_with_records(options, rates) if options.records else _compare(options, rates), options.out)
    print(options.out)
    return 0


def table(results: dict[str, Promises], predictions: dict[str, float]) -> list[str]:
    """Return the lines of a table with one line for each set of orders."""
    width = max(map(len, results))
    near = "  ".join(f"{distance:>5}" for distance in DISTANCES)
    predicted = "  predicted" if predictions else ""
    lines = [
        f"{'':<{width}}  {'':>5}  {'':>10}  {'':>10}  locality at distance",
        f"{'orders':<{width}}  reach  regularity  directions  {near}  cost  index KB{predicted}",
    ]
    for label, each in results.items():
        near = "  ".join(f"{value:.3f}" for value in each.locality)
        predicted = f"  {predictions[label]:>9.4f}" if predictions else ""
        lines.append(
            f"{label:<{width}}  {each.reach:.3f}  {each.regularity:>10.3f}  {each.directions:>10.2f}  {near}  "
            f"{each.cost:>4}  {each.index_bytes / 1000:>8,.1f}{predicted}"
        )
    return lines


def _compare(options: argparse.Namespace, rates: Sequence[float]) -> Any:
    """Print the numbers of the chosen sets of orders and return their figure."""
    grid = tuple(size for size in (options.frames, options.height, options.width) if size is not None)
    sets = chosen_sets(options, rates)
    results = {label: promises(layers, grid) for label, layers in sets.items()}
    predictions: dict[str, float] = {}
    if options.predict:
        predictions = {label: _predicted(layers, options, TIMES) for label, layers in sets.items()}
    print("\n".join(table(results, predictions)))
    if options.json is not None:
        numbers = {
            label: each._asdict() | ({"predicted": predictions[label]} if predictions else {})
            for label, each in results.items()
        }
        names = ["height", "width", "depth", "patch_size", *(["frames", "speed"] if options.frames is not None else [])]
        settings = {name: getattr(options, name) for name in names}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(options.json) as file:
            file.write(json.dumps(settings | {"rates": list(rates), "orders": numbers}, indent=1).encode() + b"\n")
    heading = f"Scan orders of {' × '.join(map(str, grid))} tokens, {options.depth} layers"
    return draw_promises(results, predictions, heading)


def _search(options: argparse.Namespace, rates: Sequence[float]) -> None:
    """Print each set of orders that is better than the one before, as it is found, as a scan for YAML."""
    pool = order_pool(options.height, options.width, options.frames)
    templates = layer_templates(options, rates)
    opposite = [("sweep", index) for index in (0, 7, 6, 1, 2, 5, 4, 3)]

    def score(orders: list[np.ndarray]) -> float:
        return _predicted(cycled_layers([whole_path(order) for order in orders], templates), options, SEARCH_TIMES)

    start = [opposite[index % len(opposite)] for index in range(options.search)]
    for predicted, names in search(start, pool, score, options.num_trials, options.seed):
        parts = ", ".join(f"{{scheme: {_in_yaml(name)}, indices: [{index}]}}" for name, index in names)
        print(f"{predicted:.4f}  parts: [{parts}]", flush=True)


def _predicted(layers: Sequence[Layer], options: argparse.Namespace, times: Sequence[float]) -> float:
    return predicted_loss(
        *(layers, options.height, options.width, options.frames),
        patch_size=options.patch_size,
        times=times,
        speed=options.speed,
    )


def _in_yaml(scheme: str) -> str:
    """Return a scheme of the pool as `scheme` in YAML."""
    if not scheme.startswith(TIME_FIRST):
        return scheme
    return f"{{class_path: zigma_pl.scan.TimeFirst, init_args: {{scheme: {scheme.removeprefix(TIME_FIRST)}}}}}"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m zigma_pl orders", description=__doc__)
    parser.add_argument(
        "scans",
        nargs="*",
        metavar="SCHEME",
        help="name, .npy, .json or .yaml file, or class path (default: all names that exist for the grid)",
    )
    parser.add_argument("--height", type=int, default=32, metavar="TOKENS", help="rows of the grid (default: 32)")
    parser.add_argument("--width", type=int, default=32, metavar="TOKENS", help="columns of the grid (default: 32)")
    parser.add_argument("--depth", type=int, default=16, metavar="LAYERS", help="number of layers (default: 16)")
    parser.add_argument("--frames", type=int, metavar="F", help="frames of a clip (default: an image)")
    parser.add_argument(
        "--plan",
        nargs="+",
        choices=["space", "time"],
        metavar="AXIS",
        help="scan clips along space or time, in this sequence of layers (default: along both, as one sequence)",
    )
    parser.add_argument(
        "--speed",
        type=float,
        default=SPEED,
        metavar="PX",
        help="median speed of what moves in a clip, in pixels per frame, for --predict (default: %(default)s)",
    )
    parser.add_argument(
        "--attention_every", type=int, metavar="N", help="every N-th layer is self-attention (default: none is)"
    )
    parser.add_argument(
        "--num_heads", type=int, default=7, metavar="H", help="heads of attention, of 64 channels each (default: 7)"
    )
    parser.add_argument(
        "--scale",
        metavar="SCALE",
        help="read the mixers of experiments at this scale, such as pilot (default: as in the .yaml file)",
    )
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
    parser.add_argument("--seed", type=int, default=0, help="seed of random orders and of --search (default: 0)")
    parser.add_argument("--predict", action="store_true", help="also predict the loss, in seconds per set")
    parser.add_argument(
        "--patch_size", type=int, default=2, metavar="PX", help="pixels per side of a token, for --predict (default: 2)"
    )
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="FOLDER",
        help="exported Mamba model whose decay rates the prediction uses (default: those of models/portraits)",
    )
    parser.add_argument(
        "--records",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="compare predictions with the losses in these result records; grids and layers come from them",
    )
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="use the predictions that --json has written to this file, instead of new ones, for --records",
    )
    parser.add_argument(
        "--held_out",
        type=Path,
        metavar="FILE",
        help="experiments that were predicted before they were run (default: experiments/orders/held_out.json)",
    )
    parser.add_argument(
        "--search",
        type=int,
        metavar="K",
        help="search for K orders of any schemes with a small predicted loss, and print them for MixedOrders",
    )
    parser.add_argument(
        "--num_trials", type=int, default=200, metavar="N", help="sets that --search tries (default: 200)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to a file")
    add_allow_import(parser)
    add_out(parser, "orders.png")
    return parser
