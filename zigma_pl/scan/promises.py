"""What a set of visit orders promises before training: how near and how regularly neighbours lie on its paths.

The layers of a backbone cycle through the orders. In a layer, a token gets context only from tokens that come earlier
in the order, and the less the more steps lie between. A displacement (rows, columns) leads from a token to the one
that gives context: (-1, 0) is the token above.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zigma_pl.scan.paths import inverse

Displacement = tuple[int, int]

EDGES: tuple[Displacement, ...] = ((-1, 0), (0, -1), (0, 1), (1, 0))
CORNERS: tuple[Displacement, ...] = ((-1, -1), (-1, 1), (1, -1), (1, 1))
DISTANCES = (1, 2, 4, 8)  # cells, for the locality
LAGS = (1, 2, 3)  # steps, for the regularity
BYTES_PER_INDEX = 4


class Promises(NamedTuple):
    """Numbers of a set of orders.

    reach: mean closeness, 0 to 1, of the eight neighbours of a token, those at its corners with half the weight.
    regularity: see `regularity`.
    directions: mean number, 0 to 4, of the neighbours that share an edge with a token and that come directly before it
        in one of the orders.
    locality: closeness, 0 to 1, of the tokens at each of DISTANCES along rows and columns; 0 beyond the grid.
    cost: scans per layer.
    index_bytes: size of the distinct orders, as int32.
    """

    reach: float
    regularity: float
    directions: float
    locality: tuple[float, ...]
    cost: int
    index_bytes: int


def promises(orders: Sequence[np.ndarray], height: int, width: int, depth: int) -> Promises:
    """Return the numbers of the orders, each (height * width,), that the layers of a backbone cycle through.

    Args:
        orders: at least one order; a backbone with fewer layers than orders uses the first ones only.
        height, width: size of the token grid.
        depth: number of layers.
    """
    orders = orders[:depth]
    weights = dict.fromkeys(EDGES, 1.0) | dict.fromkeys(CORNERS, 0.5)
    neighbours = [(weight, closeness(orders, height, width, near)) for near, weight in weights.items()]
    num_expected = sum(weight * near.size for weight, near in neighbours)
    reach = sum(weight * near.sum() for weight, near in neighbours) / max(num_expected, 1)
    directly = sum(np.sum(closeness(orders, height, width, edge) == 1) for edge in EDGES)
    return Promises(
        reach=float(reach),
        regularity=float(np.mean([regularity(order, width) for order in orders])),
        directions=float(directly / (height * width)),
        locality=tuple(_mean_closeness(orders, height, width, distance) for distance in DISTANCES),
        cost=1,
        index_bytes=BYTES_PER_INDEX * sum(map(len, {order.tobytes(): order for order in orders}.values())),
    )


def closeness(orders: Sequence[np.ndarray], height: int, width: int, displacement: Displacement) -> np.ndarray:
    """Return how close, 0 to 1, each token's neighbour at a displacement is on the paths, for neighbours on the grid.

    It is 1 / (number of steps from the neighbour to the token), the largest over the orders in which the neighbour
    comes first, and 0 if it comes later in all of them.
    """
    rows, columns = (np.arange(size) for size in (height, width))
    row, column = displacement
    rows = rows[(rows + row >= 0) & (rows + row < height)]
    columns = columns[(columns + column >= 0) & (columns + column < width)]
    closest = np.zeros((len(rows), len(columns)))
    for order in orders:
        steps = inverse(order).astype(np.int64).reshape(height, width)
        num_steps = steps[np.ix_(rows, columns)] - steps[np.ix_(rows + row, columns + column)]
        closest = np.maximum(closest, np.where(num_steps > 0, 1 / np.maximum(num_steps, 1), 0))
    return closest


def regularity(order: np.ndarray, width: int) -> float:
    """Return the probability, 0 to 1, that two steps of an order, at the same lag, have the same displacement.

    A step at lag n leads from a token to the one visited n steps later; the result is the mean over lags of 1 to 3
    steps, or 1 if the order has a single token.
    """
    coordinates = np.stack(np.divmod(order, width), axis=1)
    probabilities = []
    for lag in (lag for lag in LAGS if lag < len(order)):
        _, counts = np.unique(coordinates[lag:] - coordinates[:-lag], axis=0, return_counts=True)
        probabilities.append(np.sum((counts / counts.sum()) ** 2))
    return float(np.mean(probabilities)) if probabilities else 1.0


def _mean_closeness(orders: Sequence[np.ndarray], height: int, width: int, distance: int) -> float:
    """Return the mean closeness of the tokens `distance` cells away along rows and columns."""
    near = [closeness(orders, height, width, (distance * row, distance * column)) for row, column in EDGES]
    values = np.concatenate([each.reshape(-1) for each in near])
    return float(values.mean()) if values.size else 0.0
