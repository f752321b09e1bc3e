"""How well a number that is known before training ranks the sets of scan orders of result records."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zigma_pl.core.class_paths import build_described
from zigma_pl.core.errors import UserError
from zigma_pl.core.records import read_record
from zigma_pl.evaluation.record import ResultRecord
from zigma_pl.scan.schedule import ScanConfig


@dataclass(frozen=True)
class Measured:
    """The validation losses of one experiment, and the scan of its backbone.

    losses: one for each seed.
    """

    losses: tuple[float, ...]
    scan: ScanConfig
    height: int
    width: int
    depth: int
    patch_size: int

    @property
    def loss(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.losses))


@dataclass(frozen=True)
class Agreement:
    """How well predictions agree with losses.

    correlation: Pearson's coefficient.
    rank_correlation: Spearman's coefficient.
    left_out: predicted loss of each experiment, by a line that is fitted to the others.
    left_out_correlation: Pearson's coefficient of `left_out` with the losses.
    pairs_right: fraction of the pairs whose losses differ enough that are ranked correctly; a tie counts as half.
    num_pairs: number of these pairs.
    """

    correlation: float
    rank_correlation: float
    left_out: tuple[float, ...]
    left_out_correlation: float
    pairs_right: float
    num_pairs: int


def measured_orders(files: Iterable[Path], allow_imports: Sequence[str] = ()) -> dict[str, Measured]:
    """Return the experiments of result records by name, the smallest loss first; seeds of one experiment are grouped.

    Raises:
        UserError: a file is no record of an image model that scans tokens, or seeds of an experiment differ in scan.
    """
    found: dict[str, Measured] = {}
    for file in files:
        record = read_record(ResultRecord, file)
        name = record.row.partition("_seed")[0]
        now = _measured(record, file, allow_imports)
        before = found.get(name)
        if before is not None:
            if (before.scan, before.height, before.width, before.depth) != (now.scan, now.height, now.width, now.depth):
                raise UserError(f"{file}: its scan differs from that of another record of {name}: remove one of them")
            now = Measured(before.losses + now.losses, *_sizes(now))
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
        slope, offset = np.polyfit(x[others], y[others], 1)
        left_out.append(float(offset + slope * x[index]))
    first, second = np.triu_indices(len(y), 1)
    differs = np.abs(y[first] - y[second]) > least_difference
    # The rounding makes ties of numbers that differ in their last digits only.
    signs = np.sign(np.round(x[first] - x[second], 9)) * np.sign(y[first] - y[second])
    return Agreement(
        correlation=_correlation(x, y),
        rank_correlation=_correlation(_ranks(x), _ranks(y)),
        left_out=tuple(left_out),
        left_out_correlation=_correlation(np.array(left_out), y),
        pairs_right=float(np.mean((1 + signs[differs]) / 2)) if differs.any() else float("nan"),
        num_pairs=int(differs.sum()),
    )


def _measured(record: ResultRecord, file: Path, allow_imports: Sequence[str]) -> Measured:
    backbone: Mapping[str, Any] = record.protocol.get("backbone") or {}  # type: ignore[assignment]
    loss = record.scores.get("validation_loss")
    if "scan" not in backbone or backbone.get("latent_frames") is not None or loss is None:
        raise UserError(f"{file}: is no record of an image model with scan orders and a validation loss: leave it out")
    patch_size = backbone["patch_size"]
    return Measured(
        losses=(loss.value,),
        scan=build_described(backbone["scan"], ScanConfig, allow_imports),
        height=backbone["latent_height"] // patch_size,
        width=backbone["latent_width"] // patch_size,
        depth=backbone["depth"],
        patch_size=patch_size,
    )


def _sizes(experiment: Measured) -> tuple[ScanConfig, int, int, int, int]:
    return experiment.scan, experiment.height, experiment.width, experiment.depth, experiment.patch_size


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 0; equal values share the mean of their ranks."""
    values = np.round(values, 9)
    below = (values[:, None] > values).sum(axis=1)
    return below + ((values[:, None] == values).sum(axis=1) - 1) / 2
