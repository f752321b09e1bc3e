"""Compare sets of scan orders before training: reach, regularity, directions, locality, cost and predicted loss.

A set is a scheme by name, a .npy or .json file of orders, the class path of a scheme, or an experiment's .yaml file.
docs/orders.md explains the numbers.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from zigma_pl.cli.commands.figures import add_out, check_format, save
from zigma_pl.cli.commands.imports import add_allow_import
from zigma_pl.cli.commands.order_charts import draw_agreement, draw_promises
from zigma_pl.cli.commands.parser import Parser
from zigma_pl.core.class_paths import build_described
from zigma_pl.core.errors import UserError
from zigma_pl.core.files import written_whole
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.core.records import read_content
from zigma_pl.scan.paths import SchemeName
from zigma_pl.scan.prediction import REFERENCE_RATES, decay_rates, predicted_loss
from zigma_pl.scan.promises import DISTANCES, Promises, promises
from zigma_pl.scan.schedule import ScanConfig
from zigma_pl.scan.schemes import OrdersFile, Scheme
from zigma_pl.scan.search import search
from zigma_pl.scan.shapes import SHAPES

MAX_SIDE = 256  # tokens
MAX_DEPTH = 1000
MAX_PATCH_SIZE = 64
MAX_SEARCHED = 64
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
    check_format(options.out)
    rates = REFERENCE_RATES if options.reference is None else decay_rates(options.reference)
    if options.search is not None:
        check_whole_numbers("orders", most=MAX_SEARCHED, search=options.search)
        check_whole_numbers("orders", least=0, num_trials=options.num_trials)
        _search(options, rates)
        return 0
    save(_compare_with_records(options, rates) if options.records else _compare(options, rates), options.out)
    print(options.out)
    return 0


def chosen_scans(options: argparse.Namespace) -> dict[str, ScanConfig]:
    """Return the sets of orders that the options name, by label: every scheme with every number of orders.

    Raises:
        UserError: a scheme does not exist, or a file cannot be read.
    """
    scans: dict[str, ScanConfig] = {}
    for text in options.scans or _schemes_for(options.height, options.width):
        if text.endswith((".yaml", ".yml")):
            scans[Path(text).stem] = scan_of_experiment(Path(text), options.allow_import)
            continue
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
        raise UserError(f"unknown scheme {text!r}: choose {names}, a .npy, .json or .yaml file, or a class path")
    return build_described({"class_path": text}, Scheme, allow_imports)


def scan_of_experiment(file: Path, allow_imports: Sequence[str]) -> ScanConfig:
    """Return the scan in the config of an experiment.

    Raises:
        UserError: the file cannot be read or has no scan.
    """
    import yaml

    try:
        config = yaml.safe_load(read_content(file, "pass the config of an experiment"))
        description = config["model"]["backbone"]["init_args"]["scan"]
    except (yaml.YAMLError, UnicodeDecodeError, LookupError, TypeError) as error:
        raise UserError(f"{file}: has no model.backbone.init_args.scan: pass the config of an experiment") from error
    return build_described(description, ScanConfig, allow_imports)


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
    sizes = (options.height, options.width, options.depth)
    orders = {label: scan.orders(*sizes[:2]) for label, scan in chosen_scans(options).items()}
    results = {label: promises(each, *sizes) for label, each in orders.items()}
    predictions: dict[str, float] = {}
    if options.predict:
        predictions = {
            label: predicted_loss(each, *sizes, patch_size=options.patch_size, rates=rates)
            for label, each in orders.items()
        }
    print("\n".join(table(results, predictions)))
    if options.json is not None:
        numbers = {
            label: each._asdict() | ({"predicted": predictions[label]} if predictions else {})
            for label, each in results.items()
        }
        settings = {name: getattr(options, name) for name in ("height", "width", "depth", "patch_size")}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(options.json) as file:
            file.write(json.dumps(settings | {"rates": list(rates), "orders": numbers}, indent=1).encode() + b"\n")
    heading = f"Scan orders of {options.height} × {options.width} tokens, {options.depth} layers"
    return draw_promises(results, predictions, heading)


def _compare_with_records(options: argparse.Namespace, rates: Sequence[float]) -> Any:
    """Print how well predictions agree with the losses of records and return their figure."""
    from zigma_pl.evaluation.order_agreement import agreement, largest_seed_difference, measured_orders

    experiments = measured_orders(options.records, options.allow_import)
    if len(experiments) < 3:
        raise UserError("orders --records: needs records of at least 3 experiments")
    predictions, directions = [], []
    for each in experiments.values():
        orders = each.scan.orders(each.height, each.width)
        sizes = (each.height, each.width, each.depth)
        predictions.append(predicted_loss(orders, *sizes, patch_size=each.patch_size, rates=rates))
        directions.append(-promises(orders, *sizes).directions)
    losses = [each.loss for each in experiments.values()]
    least_difference = largest_seed_difference(experiments.values())
    found = agreement(losses, predictions, least_difference)
    width = max(map(len, experiments))
    print(f"{'experiment':<{width}}  measured  predicted  fitted to the others")
    for name, loss, predicted, fitted in zip(experiments, losses, predictions, found.left_out, strict=True):
        print(f"{name:<{width}}  {loss:>8.4f}  {predicted:>9.4f}  {fitted:>20.4f}")
    for label, each_found in (
        ("predicted loss", found),
        ("directions", agreement(losses, directions, least_difference)),
    ):
        print(
            f"{label}: correlation {each_found.correlation:.3f}, left out {each_found.left_out_correlation:.3f}, "
            f"rank {each_found.rank_correlation:.3f}; {100 * each_found.pairs_right:.1f} % of {each_found.num_pairs} "
            f"pairs that differ by more than {least_difference:.4f} are ranked correctly"
        )
    return draw_agreement(list(experiments), losses, list(found.left_out))


def _search(options: argparse.Namespace, rates: Sequence[float]) -> None:
    """Print each set of orders that is better than the one before, as it is found, as a scan for YAML."""
    sizes = (options.height, options.width)
    opposite = [("sweep", index) for index in (0, 7, 6, 1, 2, 5, 4, 3)]

    def score(orders: list[np.ndarray]) -> float:
        return predicted_loss(
            orders,
            *sizes,
            options.depth,
            patch_size=options.patch_size,
            rates=rates,
            times=SEARCH_TIMES,
        )

    start = [opposite[index % len(opposite)] for index in range(options.search)]
    for predicted, names in search(start, *sizes, score, options.num_trials, options.seed):
        parts = ", ".join(f"{{scheme: {name}, indices: [{index}]}}" for name, index in names)
        print(f"{predicted:.4f}  parts: [{parts}]", flush=True)


def _schemes_for(height: int, width: int) -> list[str]:
    """Return the names of the schemes that exist for a grid."""
    return [name for name in get_args(SchemeName) if name not in SHAPES or SHAPES[name].exists_for(height, width)]


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
    parser.add_argument("--predict", action="store_true", help="also predict the loss, in about a second per set")
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
        help="compare predictions with the losses in these result records; grids, depths and orders come from them",
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
