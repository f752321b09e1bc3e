"""How well a number that is known before training ranks the sets of scan orders of result records."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from zigma_pl.core.errors import UserError
from zigma_pl.core.records import Name, Record, read_record
from zigma_pl.evaluation.order_models import layers_of_backbone
from zigma_pl.evaluation.record import ResultRecord
from zigma_pl.scan.layers import REFERENCE_RATES, Layer, content_of


class HeldOut(Record):
    """Experiments whose losses were predicted before any of them was run.

    predictions: the files with the predictions, in the same folder.
    experiments: the commit that added the prediction, by the name of the experiment.
    """

    remedy = "restore the file"

    predictions: list[str]
    experiments: dict[Name, str]


@dataclass(frozen=True)
class Measured:
    """The validation losses of one experiment, and the layers of its backbone.

    losses: one for each seed.
    num_frames: None for images.
    """

    losses: tuple[float, ...]
    layers: tuple[Layer, ...]
    height: int
    width: int
    num_frames: int | None
    patch_size: int

    @property
    def loss(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.losses))

    @property
    def grid(self) -> tuple[int, ...]:
        """Size of the token grid: (height, width), or (frames, height, width)."""
        return (self.height, self.width) if self.num_frames is None else (self.num_frames, self.height, self.width)


@dataclass(frozen=True)
class Agreement:
    """How well predictions agree with losses.

    correlation: Pearson's coefficient.
    rank_correlation: Spearman's coefficient.
    left_out: predicted loss of each experiment, by a line that is fitted to the others.
    left_out_correlation: Pearson's coefficient of `left_out` with the losses.
    pairs: the pairs whose losses differ enough.
    """

    correlation: float
    rank_correlation: float
    left_out: tuple[float, ...]
    left_out_correlation: float
    pairs: "RankedPairs"


@dataclass(frozen=True)
class RankedPairs:
    """How many pairs of experiments are ranked correctly.

    right: fraction of the pairs that are ranked correctly; a tie counts as half. NaN without pairs.
    number: number of pairs.
    """

    right: float
    number: int


def measured_orders(
    files: Iterable[Path], allow_imports: Sequence[str] = (), rates: Sequence[float] = REFERENCE_RATES
) -> dict[str, Measured]:
    """Return the experiments of result records by name, the smallest loss first; seeds of one experiment are grouped.

    Args:
        files: the records, all of one set of data and one scale.
        allow_imports: packages whose classes the records may name.
        rates: decay rates of Mamba-1.

    Raises:
        UserError: a file is no record of a backbone whose loss can be predicted, or seeds of an experiment differ in
            their backbone.
    """
    found: dict[str, Measured] = {}
    for file in files:
        record = read_record(ResultRecord, file)
        name = record.row.partition("_seed")[0]
        now = _measured(record, file, allow_imports, rates)
        before = found.get(name)
        if before is not None:
            if _content(before) != _content(now):
                raise UserError(f"{file}: its scan differs from that of another record of {name}: remove one of them")
            now = replace(now, losses=before.losses + now.losses)
        found[name] = now
    return dict(sorted(found.items(), key=lambda entry: entry[1].loss))


def largest_seed_difference(experiments: Iterable[Measured]) -> float:
    """Return the largest difference between the losses of two seeds of an experiment; 0 if all have one seed."""
    return max((max(each.losses) - min(each.losses) for each in experiments), default=0.0)


def agreement(losses: Sequence[float], predictions: Sequence[float], least_difference: float) -> Agreement:
    """Compare predictions with losses, in the same sequence; at least three.

    Args:
        losses: measured losses.
        predictions: numbers that should rise with the losses, in any unit.
        least_difference: pairs of losses that do not differ by more are left out.
    """
    y, x = np.asarray(losses, dtype=float), np.asarray(predictions, dtype=float)
    left_out = []
    for index in range(len(y)):
        others = np.arange(len(y)) != index
        # The line through equal predictions is horizontal.
        slope, offset = np.polyfit(x[others], y[others], 1) if np.ptp(x[others]) else (0.0, y[others].mean())
        left_out.append(float(offset + slope * x[index]))
    pairs = ranked_pairs(losses, predictions, least_difference)
    return Agreement(
        correlation=_correlation(x, y),
        rank_correlation=_correlation(_ranks(x), _ranks(y)),
        left_out=tuple(left_out),
        left_out_correlation=_correlation(np.array(left_out), y),
        pairs=pairs,
    )


def ranked_pairs(
    losses: Sequence[float],
    predictions: Sequence[float],
    least_difference: float,
    held_out: Sequence[bool] | None = None,
    num_held_out: Sequence[int] = (0, 1, 2),
) -> RankedPairs:
    """Return how many of the pairs of experiments are ranked correctly.

    Args:
        losses: measured losses.
        predictions: numbers that should rise with the losses, in any unit.
        least_difference: pairs of losses that do not differ by more are left out.
        held_out: for each experiment, whether it was run after it had been predicted; None if none was.
        num_held_out: how many experiments of a pair must be such, for the pair to count.
    """
    y, x = np.asarray(losses, dtype=float), np.asarray(predictions, dtype=float)
    late = np.zeros(len(y), dtype=int) if held_out is None else np.asarray(held_out, dtype=int)
    first, second = np.triu_indices(len(y), 1)
    counts = (np.abs(y[first] - y[second]) > least_difference) & np.isin(late[first] + late[second], num_held_out)
    # The rounding makes ties of numbers that differ in their last digits only.
    signs = np.sign(np.round(x[first] - x[second], 9)) * np.sign(y[first] - y[second])
    right = float(np.mean((1 + signs[counts]) / 2)) if counts.any() else float("nan")
    return RankedPairs(right, int(counts.sum()))


def fitted_losses(numbers: Sequence[Sequence[float]], losses: Sequence[float], known: Sequence[bool]) -> list[float]:
    """Return the losses on a linear function of several numbers, fitted by least squares to the known experiments.

    Args:
        numbers: those of each experiment.
        losses: measured losses.
        known: for each experiment, whether the function is fitted to it.
    """
    columns = np.column_stack([np.asarray(numbers, dtype=float), np.ones(len(losses))])
    chosen = np.asarray(known)
    weights = np.linalg.lstsq(columns[chosen], np.asarray(losses, dtype=float)[chosen], rcond=None)[0]
    return (columns @ weights).tolist()


def _measured(record: ResultRecord, file: Path, allow_imports: Sequence[str], rates: Sequence[float]) -> Measured:
    backbone: Mapping[str, Any] = record.protocol.get("backbone") or {}  # type: ignore[assignment]
    loss = record.scores.get("validation_loss")
    if loss is None or not {"class", "depth", "patch_size", "latent_height", "latent_width"} <= backbone.keys():
        raise UserError(f"{file}: is no record of a backbone with scan orders and a validation loss: leave it out")
    if not math.isfinite(loss.value):
        raise UserError(f"{file}: its validation loss is {loss.value}: leave it out")
    patch_size = backbone["patch_size"]
    height, width = backbone["latent_height"] // patch_size, backbone["latent_width"] // patch_size
    num_frames = backbone.get("latent_frames")
    try:
        layers = layers_of_backbone(
            *(backbone["class"], backbone, backbone["depth"], height, width, num_frames),
            rates=rates,
            allow_imports=allow_imports,
        )
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    return Measured((loss.value,), tuple(layers), height, width, num_frames, patch_size)


def _content(experiment: Measured) -> tuple[Any, ...]:
    return experiment.grid, experiment.patch_size, content_of(experiment.layers)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 0; equal values share the mean of their ranks."""
    values = np.round(values, 9)
    below = (values[:, None] > values).sum(axis=1)
    return below + ((values[:, None] == values).sum(axis=1) - 1) / 2
