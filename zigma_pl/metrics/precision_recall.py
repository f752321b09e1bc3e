"""Improved precision and recall (arXiv:1904.06991): how many samples lie in the other set's manifold.

Axes: n real samples, m generated ones, d features.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from zigma_pl.errors import UserError

_ROWS_PER_PASS = 1024  # bounds the memory of a pass to this many rows of distances


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]."""

    precision: float
    recall: float


def precision_recall(real: Tensor, fake: Tensor, num_neighbours: int = 3) -> PrecisionRecall:
    """Return the share of generated samples in the real manifold, and of real samples in the generated one.

    A set's manifold is the union of balls around its members that reach to their `num_neighbours`-th nearest neighbour
    in the set, the member itself not counted.

    Args:
        real: (n, d) features.
        fake: (m, d) features.
        num_neighbours: k.

    Raises:
        UserError: a set has no more members than neighbours are asked for.
    """
    if min(len(real), len(fake)) <= num_neighbours:
        raise UserError(
            f"precision and recall with {num_neighbours} neighbours need more than that many samples, "
            f"got {len(real)} real and {len(fake)} generated ones"
        )
    real, fake = real.double(), fake.double()
    return PrecisionRecall(
        precision=share_inside(fake, real, radii(real, num_neighbours)),
        recall=share_inside(real, fake, radii(fake, num_neighbours)),
    )


def radii(members: Tensor, num_neighbours: int) -> Tensor:
    """Return the distance of each of (n, d) members to its k-th nearest other member, (n,)."""
    # The nearest of all is the member itself.
    parts = [distances(rows, members).kthvalue(num_neighbours + 1).values for rows in members.split(_ROWS_PER_PASS)]
    return torch.cat(parts)


def share_inside(samples: Tensor, members: Tensor, radius: Tensor) -> float:
    """Return the share of samples (m, d) that lie in a ball of `radius`, (n,), around one of members (n, d)."""
    inside = [(distances(rows, members) <= radius).any(dim=1) for rows in samples.split(_ROWS_PER_PASS)]
    return float(torch.cat(inside).double().mean())


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Return Euclidean distances (n, m), exact also where they are small beside the features' size."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
