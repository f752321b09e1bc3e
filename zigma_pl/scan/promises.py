"""What the scans of a backbone promise before training: how near and how regularly neighbours lie on their paths.

In a layer, a token gets context only from tokens that come earlier on the path, and the less the more steps lie
between. A displacement (rows, columns), or (frames, rows, columns) in a clip, leads from a token to the one that gives
context: (-1, 0) is the token above.

Axes: L tokens, A axes of the grid.
"""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from zigma_pl.scan.layers import Layer, Path, Scan, distinct_paths
from zigma_pl.scan.paths import inverse

Displacement = tuple[int, ...]

DISTANCES = (1, 2, 4, 8)  # cells, for the locality
LAGS = (1, 2, 3)  # steps, for the regularity
BYTES_PER_INDEX = 4


class Promises(NamedTuple):
    """Numbers of a set of orders.

    reach: mean closeness, 0 to 1, of the neighbours of a token: 8 in an image, 26 in a clip. Those that share a side
        with the token have the weight 1, those at a corner 1/2, or 1/3 if they differ in all three coordinates.
    regularity: see `regularity`.
    directions: mean number, 0 to 4 (6 in a clip), of the neighbours that share a side with a token and that come
        directly before it on one of the paths.
    locality: closeness, 0 to 1, of the tokens at each of DISTANCES along the axes of the grid; 0 beyond the grid.
    cost: scans per layer.
    index_bytes: size of the distinct orders, as int32.
    """

    reach: float
    regularity: float
    directions: float
    locality: tuple[float, ...]
    cost: int
    index_bytes: int


def promises(layers: Sequence[Layer], grid: tuple[int, ...]) -> Promises:
    """Return the numbers of the scans of a backbone; layers of attention have no path and are left out.

    Args:
        layers: the layers.
        grid: (height, width) of the token grid, or (frames, height, width).
    """
    paths = distinct_paths(layers)
    weights = {near: 1 / np.count_nonzero(near) for near in product((-1, 0, 1), repeat=len(grid)) if any(near)}
    neighbours = [(weight, closeness(paths, grid, near)) for near, weight in weights.items()]
    num_expected = sum(weight * near.size for weight, near in neighbours)
    reach = sum(weight * near.sum() for weight, near in neighbours) / max(num_expected, 1)
    directly = sum(np.sum(near == 1) for weight, near in neighbours if weight == 1)
    return Promises(
        reach=float(reach),
        regularity=float(np.mean([regularity(path, grid) for path in paths])) if paths else 1.0,
        directions=float(directly / np.prod(grid)),
        locality=tuple(_mean_closeness(paths, grid, distance) for distance in DISTANCES),
        cost=max((len(layer.paths) for layer in layers if isinstance(layer, Scan)), default=0),
        index_bytes=BYTES_PER_INDEX * sum(path.length for path in paths),
    )


def closeness(paths: Sequence[Path], grid: tuple[int, ...], displacement: Displacement) -> np.ndarray:
    """Return how close, 0 to 1, each token's neighbour at a displacement is on the paths, for neighbours on the grid.

    It is 1 / (number of steps from the neighbour to the token), the largest over the paths in which the neighbour comes
    first in the same sequence, and 0 if there is none.
    """
    tokens, near = _overlap(grid, displacement), _overlap(grid, tuple(-step for step in displacement))
    closest = np.zeros([part.stop - part.start for part in tokens])
    for path in paths:
        steps = inverse(path.order).astype(np.int64).reshape(grid)
        num_steps = steps[tokens] - steps[near]
        is_before = (num_steps > 0) & (steps[tokens] // path.length == steps[near] // path.length)
        closest = np.maximum(closest, np.where(is_before, 1 / np.maximum(num_steps, 1), 0))
    return closest


def regularity(path: Path, grid: tuple[int, ...]) -> float:
    """Return the probability, 0 to 1, that two steps of a path, at the same lag, have the same displacement.

    A step at lag n leads from a token to the one visited n steps later in the same sequence; the result is the mean
    over lags of 1 to 3 steps, or 1 if sequences have a single token.
    """
    coordinates = np.stack(np.unravel_index(path.order, grid), axis=1).reshape(-1, path.length, len(grid))
    probabilities = []
    for lag in (lag for lag in LAGS if lag < path.length):
        moves = (coordinates[:, lag:] - coordinates[:, :-lag]).reshape(-1, len(grid))
        _, counts = np.unique(moves, axis=0, return_counts=True)
        probabilities.append(np.sum((counts / counts.sum()) ** 2))
    return float(np.mean(probabilities)) if probabilities else 1.0


def _overlap(grid: tuple[int, ...], displacement: Displacement) -> tuple[slice, ...]:
    """Return the part of the grid whose tokens have a neighbour at a displacement."""
    starts = [min(max(0, -step), size) for size, step in zip(grid, displacement, strict=True)]
    stops = [size - max(0, step) for size, step in zip(grid, displacement, strict=True)]
    return tuple(slice(start, max(start, stop)) for start, stop in zip(starts, stops, strict=True))


def _mean_closeness(paths: Sequence[Path], grid: tuple[int, ...], distance: int) -> float:
    """Return the mean closeness of the tokens `distance` cells away along the axes of the grid."""
    steps = [tuple(sign * distance * row) for row in np.eye(len(grid), dtype=int) for sign in (-1, 1)]
    values = np.concatenate([closeness(paths, grid, step).reshape(-1) for step in steps])
    return float(values.mean()) if values.size else 0.0
