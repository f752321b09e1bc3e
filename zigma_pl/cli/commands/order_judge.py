"""`python -m zigma_pl orders --records`: predictions beside the losses of result records."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zigma_pl.cli.commands.order_charts import Panel, draw_agreement
from zigma_pl.core.errors import UserError
from zigma_pl.core.records import read_content, read_record
from zigma_pl.core.shipped import shipped_file
from zigma_pl.scan.prediction import predicted_loss
from zigma_pl.scan.promises import promises

if TYPE_CHECKING:
    from zigma_pl.evaluation.order_agreement import Measured

LEAST_FITTED = 6  # experiments that reach and regularity are fitted to: twice as many as the fit has coefficients
PAIRS = {"all": (0, 1, 2), "both held out": (2,), "one held out": (1,), "none held out": (0,)}


def compare_with_records(options: argparse.Namespace, rates: Sequence[float]) -> Any:
    """Print how well predictions agree with the losses of each set of records, and return their figure.

    The records of a folder are a set.

    Raises:
        UserError: a record or another file is wrong, or a set has too few experiments.
    """
    from zigma_pl.evaluation.order_agreement import HeldOut, measured_orders

    held_out = read_record(HeldOut, options.held_out or shipped_file("experiments/orders/held_out.json")).experiments
    sets: dict[str, list[Path]] = {}
    for file in options.records:
        sets.setdefault(file.parent.name, []).append(file)
    panels = {}
    for label, files in sets.items():
        experiments = measured_orders(files, options.allow_import, rates)
        if len(experiments) < 3:
            raise UserError(f"orders --records: {label} needs records of at least 3 experiments")
        print(f"{label}:")
        predictions = _predictions(experiments, options, rates)
        is_held_out = [name in held_out for name in experiments]
        losses = _judge(experiments, predictions, is_held_out)
        panels[label] = Panel(list(experiments), losses, predictions, is_held_out)
    return draw_agreement(panels)


def _predictions(
    experiments: "dict[str, Measured]", options: argparse.Namespace, rates: Sequence[float]
) -> list[float]:
    """Return the predicted losses of experiments: those of the file --predictions, or new ones."""
    if options.predictions is None:
        return [
            predicted_loss(
                *(each.layers, each.height, each.width, each.num_frames),
                patch_size=each.patch_size,
                speed=options.speed,
            )
            for each in experiments.values()
        ]
    file = options.predictions
    try:
        numbers = json.loads(read_content(file, "pass a file that --json has written"))
        known = {name: float(each["predicted"]) for name, each in numbers["orders"].items()}
        sizes = (numbers.get("frames"), numbers["height"], numbers["width"], numbers["depth"], numbers["patch_size"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: has no predictions: pass a file that --predict --json has written") from error
    for name, each in experiments.items():
        own_sizes = (each.num_frames, each.height, each.width, len(each.layers), each.patch_size)
        if name not in known or sizes != own_sizes:
            raise UserError(f"{file}: has no prediction for {name} of this size: leave out the record or --predictions")
    return [known[name] for name in experiments]


def _judge(experiments: "dict[str, Measured]", predictions: Sequence[float], held_out: Sequence[bool]) -> list[float]:
    """Print the agreement of predictions with the losses of experiments, and return the losses."""
    from zigma_pl.evaluation.order_agreement import agreement, fitted_losses, largest_seed_difference, ranked_pairs

    losses = [each.loss for each in experiments.values()]
    promised = [promises(each.layers, each.grid) for each in experiments.values()]
    num_repeated = sum(len(each.losses) > 1 for each in experiments.values())
    least_difference = largest_seed_difference(experiments.values())
    found = agreement(losses, predictions, least_difference)
    width = max(map(len, experiments))
    print(f"{'experiment':<{width}}  measured  seeds  predicted  fitted to the others")
    for name, each, predicted, fitted, late in zip(
        experiments, experiments.values(), predictions, found.left_out, held_out, strict=True
    ):
        marker = "  held out" if late else ""
        print(f"{name:<{width}}  {each.loss:>8.4f}  {len(each.losses):>5}  {predicted:>9.4f}  {fitted:>20.4f}{marker}")
    if num_repeated:
        print(
            f"pairs that differ by more than two seeds of an experiment, {least_difference:.4f} "
            f"({num_repeated} experiments have several seeds):"
        )
    else:
        print("all pairs, as no experiment has several seeds:")
    compared = {"predicted loss": predictions, "directions": [-each.directions for each in promised]}
    known = [not late for late in held_out]
    if sum(known) >= LEAST_FITTED:
        pairs_of_numbers = [(each.reach, each.regularity) for each in promised]
        compared["reach and regularity, fitted"] = fitted_losses(pairs_of_numbers, losses, known)
    for label, numbers in compared.items():
        agrees = agreement(losses, numbers, least_difference)
        print(
            f"{label}: correlation {agrees.correlation:.3f}, left out {agrees.left_out_correlation:.3f}, "
            f"rank {agrees.rank_correlation:.3f}"
        )
        for kind, num_held_out in PAIRS.items():
            pairs = ranked_pairs(losses, numbers, least_difference, held_out, num_held_out)
            if pairs.number:
                print(f"  {kind}: {100 * pairs.right:.1f} % of {pairs.number} pairs are ranked correctly")
    return losses
