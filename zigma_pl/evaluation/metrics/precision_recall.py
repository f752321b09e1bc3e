"""Improved precision and recall (arXiv:1904.06991): the fraction of samples in the other set's manifold.

Axes: n real samples, m generated samples, d features.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.evaluation.metrics.feature_sets import Extractor, FeatureMetric

_ROWS_PER_PASS = 1024  # rows of the distance matrix that are in memory at a time


class PrecisionRecallValues(NamedTuple):
    """Precision and recall, in [0, 1]."""

    precision: float
    recall: float


class PrecisionRecall(FeatureMetric):
    """Precision and recall of generated samples as a `torchmetrics.Metric`.

    The states are the features of all samples.

    Args:
        extractor: see `FeatureMetric`.
        num_neighbours: see `precision_recall`.
        options: options of `FeatureMetric`.
    """

    keeps = "features"
    higher_is_better = True

    def __init__(self, extractor: Extractor, num_neighbours: int = 3, **options: Any) -> None:
        check_whole_numbers("PrecisionRecall", num_neighbours=num_neighbours)
        super().__init__(extractor, **options)
        self.num_neighbours = num_neighbours

    def compute(self) -> dict[str, Tensor]:
        """Return `precision` and `recall` over the samples of all processes, float64 scalars.

        Raises:
            UserError: there are too few samples, or a sample occurs twice.
        """
        self.check_ids()
        values = precision_recall(self.features("real"), self.features("fake"), self.num_neighbours)
        return {
            name: torch.tensor(value, dtype=torch.float64, device=self.device)
            for name, value in values._asdict().items()
        }


def precision_recall(real: Tensor, fake: Tensor, num_neighbours: int = 3) -> PrecisionRecallValues:
    """Return the fractions of generated samples in the real manifold, and of real samples in the generated manifold.

    The manifold of a set is the union of balls around its members. The radius of a ball is the distance to the
    `num_neighbours`-th nearest other member of the set.

    Args:
        real: (n, d) features.
        fake: (m, d) features.
        num_neighbours: number of nearest neighbours, k.

    Raises:
        UserError: num_neighbours is less than 1, or not less than the number of samples in a set.
    """
    if num_neighbours < 1:
        raise UserError(f"precision and recall: num_neighbours must be at least 1, got {num_neighbours}")
    if min(len(real), len(fake)) <= num_neighbours:
        raise UserError(
            f"precision and recall with {num_neighbours} neighbours need more than {num_neighbours} samples, "
            f"got {len(real)} real and {len(fake)} generated samples"
        )
    real, fake = real.double(), fake.double()
    return PrecisionRecallValues(
        precision=fraction_inside(fake, real, radii(real, num_neighbours)),
        recall=fraction_inside(real, fake, radii(fake, num_neighbours)),
    )


def radii(members: Tensor, num_neighbours: int) -> Tensor:
    """Return the distance of each of (n, d) members to its k-th nearest other member, (n,)."""
    # k + 1, as the nearest member is the member itself.
    parts = [distances(rows, members).kthvalue(num_neighbours + 1).values for rows in members.split(_ROWS_PER_PASS)]
    return torch.cat(parts)


def fraction_inside(samples: Tensor, members: Tensor, radius: Tensor) -> float:
    """Return the fraction of samples (m, d) that are within `radius` (n,) of any of the members (n, d)."""
    inside = [(distances(rows, members) <= radius).any(dim=1) for rows in samples.split(_ROWS_PER_PASS)]
    return float(torch.cat(inside).double().mean())


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Return Euclidean distances (n, m), accurate even if they are small relative to the features."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
