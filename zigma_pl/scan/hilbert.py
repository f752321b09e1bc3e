"""A Hilbert curve generalised to any rectangle; consecutive cells always share an edge.

The building block is the *open curve*: it starts in one corner, visits every cell of a `length` x `breadth` rectangle
and ends in the other corner of the same side, whose length is `length`, like Hilbert's curve on a square. A chessboard
colouring shows when such a path can exist: `length` even, or both sides odd, or `breadth` 1. The rectangle is then cut
into smaller rectangles with open curves. The first cut is at an even distance, so that a path exists in every piece and
no step is diagonal:

- an elongated rectangle is cut into two, visited one after the other;
- any other rectangle is cut as in Hilbert's curve: up the near half, along the far side, down the other half.

An odd length with an even breadth has no open curve. Such a rectangle is cut into an even part, which has one, and a
last part of odd length that is entered at its near corner and traversed across the breadth, so the path ends on the
opposite side. On squares with a power of two as side the result is the classical Hilbert curve.
"""

from functools import lru_cache

import numpy as np


def curve_along(length: int, breadth: int) -> np.ndarray:
    """Return (length * breadth, 2) cells (along, across) of a path from (0, 0) that runs along the length.

    It ends at (length - 1, 0) if the parity of the grid allows it; see the module docstring for the other sizes.
    """
    if length == 1:
        return _open_curve(breadth, 1)[:, ::-1]
    if _has_open_curve(length, breadth):
        return _open_curve(length, breadth)
    # The last part is shorter than the breadth, so that the path does not run a long way out and back.
    last = min(length - _even_half(length), breadth - 1)
    head = length - last
    return np.concatenate([_open_curve(head, breadth), _moved(_open_curve(breadth, last)[:, ::-1], head, 0)])


@lru_cache(maxsize=64)
def _open_curve(length: int, breadth: int) -> np.ndarray:
    """Return cells (along, across) of a path from (0, 0) to (length - 1, 0). Cached: do not modify the result."""
    assert _has_open_curve(length, breadth), (length, breadth)
    if breadth == 1:
        return np.stack([np.arange(length), np.zeros(length, dtype=np.int64)], axis=1)
    if 2 * length > 3 * breadth:
        half = _even_half(length)
        return np.concatenate([_open_curve(half, breadth), _moved(_open_curve(length - half, breadth), half, 0)])
    left = length // 2
    rise = _even_half(breadth) if breadth > 2 else 1
    up = _open_curve(rise, left)[:, ::-1]
    along = _moved(_open_curve(length, breadth - rise), 0, rise)
    down = np.array([length - 1, rise - 1]) - _open_curve(rise, length - left)[:, ::-1]
    return np.concatenate([up, along, down])


def _moved(cells: np.ndarray, along: int, across: int) -> np.ndarray:
    return cells + np.array([along, across])


def _has_open_curve(length: int, breadth: int) -> bool:
    """Return whether a path through all cells can connect the two corners of a side of length `length`."""
    return breadth == 1 or length % 2 == 0 or (length > 1 and breadth % 2 == 1)


def _even_half(size: int) -> int:
    """Return half of the size, rounded up to an even number; less than `size` except for size 2."""
    return size // 2 + size // 2 % 2
