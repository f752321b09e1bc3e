"""Visit orders over a token grid: the sequence in which a scan reads the tokens (ZigMa, arXiv:2403.13802, Fig. 3).

A visit order is an (L,) int32 array, L = height * width, of raster indices: `order[k]` is the token visited at step k,
and the token in row r and column c has raster index r * width + c. Any height and width of at least 1 is allowed.
"""

from typing import Literal, get_args

import numpy as np

from zigma_pl.core.errors import UserError
from zigma_pl.scan.hilbert import curve_along
from zigma_pl.scan.shapes import CORNER_DIRECTIONS, shaped_order

SchemeName = Literal[
    "sweep",
    "zigzag",
    "hilbert",
    "random",
    "diagonal",
    "spiral",
    "snake2",
    "snake4",
    "window2",
    "window4",
    "window8",
    "block4",
    "block8",
    "dilated2",
    "dilated4",
    "z_order",
    "moore",
    "peano",
    "shifted_zigzag",
    "shifted_window4",
]
NUM_SYMMETRIES = 8  # rotations and reflections of a rectangle, including transposed ones


def visit_order(
    name: SchemeName, height: int, width: int, *, index: int = 0, seed: int = 0, legacy_inverse: bool = False
) -> np.ndarray:
    """Return one visit order of a scheme, (height * width,) int32.

    Args:
        name: sweep: rows (or columns) that all start at the same edge. zigzag: rows (or columns) in alternating
            directions. hilbert: a Hilbert curve adapted to the rectangle. random: a random permutation. The others
            are described in zigma_pl.scan.shapes; the number in a name is a size in cells.
        height, width: size of the token grid, at least 1 each.
        index: which of the scheme's orders, 0 to 7; for random any index from 0.
        seed: seed of the random orders, at least 0; other schemes ignore it.
        legacy_inverse: for hilbert, return the inverse permutation, which the official ZigMa release uses instead of
            the curve.

    Raises:
        UserError: a size, index or seed is out of range; the name is unknown; the scheme does not exist for this grid;
            legacy_inverse is used with another scheme or on a grid that is not a square with a power of two as side.
    """
    _check(name, height, width, index, seed)
    if legacy_inverse:
        check_legacy_inverse(name)
        return _inverted_hilbert(height, width, index)
    if name == "random":
        return _random(height * width, index, seed)
    if name == "hilbert":
        return _hilbert(height, width, index)
    return shaped_order(name, height, width, index)


def inverse(order: np.ndarray) -> np.ndarray:
    """Return the inverse permutation, the step of each token, (L,) in order's dtype: `inverse(order)[order[k]] == k`.

    Raises:
        UserError: `order` is not a permutation of 0 .. L - 1.
    """
    if not is_permutation(order):
        raise UserError(f"a visit order must contain each of 0 to {np.size(order) - 1} exactly once")
    steps = np.empty_like(order)
    steps[order] = np.arange(len(order))
    return steps


def is_permutation(order: np.ndarray) -> bool:
    """Return whether `order` is a one-dimensional array that contains each of 0 .. L - 1 exactly once."""
    return order.ndim == 1 and np.array_equal(np.sort(order), np.arange(len(order)))


def adjacency(order: np.ndarray, height: int, width: int, num_frames: int = 1) -> float:
    """Return the fraction, 0 to 1, of consecutive tokens that are neighbours; 1 for a single token.

    Neighbours share an edge on the grid or have the same grid position in consecutive frames of a clip.

    Raises:
        UserError: `order` does not have num_frames * height * width entries.
    """
    if len(order) != num_frames * height * width:
        frames = "" if num_frames == 1 else f"{num_frames} x "
        raise UserError(f"a visit order of {len(order)} tokens does not fit a grid of {frames}{height} x {width}")
    if len(order) == 1:
        return 1.0
    coordinates = np.stack(np.unravel_index(order, (num_frames, height, width)))
    return float(np.mean(np.abs(np.diff(coordinates)).sum(axis=0) == 1))


def _check(name: str, height: int, width: int, index: int, seed: int) -> None:
    if name not in get_args(SchemeName):
        raise UserError(f"unknown scan scheme {name!r}; choose one of {', '.join(get_args(SchemeName))}")
    if height < 1 or width < 1:
        raise UserError(f"the token grid must be at least 1 x 1, not {height} x {width} (height x width)")
    if index < 0 or (name != "random" and index >= NUM_SYMMETRIES):
        raise UserError(f"{name} order {index} does not exist; the index must be 0 to {NUM_SYMMETRIES - 1}")
    if seed < 0:
        raise UserError(f"the scan seed must be 0 or more, not {seed}")


def check_legacy_inverse(name: object) -> None:
    """Raise UserError unless the scheme is hilbert, whose orders the official release inverts."""
    if name != "hilbert":
        raise UserError(f"scan.legacy_inverse: exists only for hilbert, not for {name}: leave the option out")


def _hilbert(height: int, width: int, index: int) -> np.ndarray:
    """Rotate the curve by `index // 2` quarter turns and mirror it for odd indices, as the official release does.

    On a rectangle the mirrored (transposed) curve is the one built for the transposed shape, which runs along the other
    side. Order 0 runs along the longer side; on a square it starts top-left and ends bottom-left.
    """
    quarter_turns, mirrored = index // 2, (index % 2 == 1) != (width > height)
    swapped = (quarter_turns % 2 == 1) != mirrored
    length, breadth = (width, height) if swapped else (height, width)
    steps = np.empty((length, breadth), dtype=np.int32)
    steps[tuple(curve_along(length, breadth).T)] = np.arange(height * width)
    steps = np.rot90(steps, quarter_turns)
    return inverse((steps.T if mirrored else steps).reshape(-1))


def _inverted_hilbert(height: int, width: int, index: int) -> np.ndarray:
    """Return the order of the official release: the step of each token along the curve, used as the token to visit.

    This is the inverse permutation of the curve, in which consecutive tokens are seldom neighbours. The release
    reverts the order correctly (outputs return to their own rows); only the path is scrambled.
    """
    if height != width or height & (height - 1):
        raise UserError(
            f"scan.legacy_inverse: exists only for square grids with a power of two as side, not {height} x {width}: "
            "leave the option out"
        )
    return inverse(_hilbert(height, width, index))


def _random(num_tokens: int, index: int, seed: int) -> np.ndarray:
    """Sort raw 64-bit draws, which NumPy keeps stable across versions, unlike `Generator.permutation`."""
    draws = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(index,))).random_raw(num_tokens)
    return np.argsort(draws, kind="stable").astype(np.int32)


def named_orders(height: int, width: int, seed: int) -> list[tuple[str, np.ndarray]]:
    """Return (title, visit order (L,)) for sweep, Hilbert, random and the eight zigzags."""
    orders = [
        ("sweep", visit_order("sweep", height, width)),
        ("Hilbert", visit_order("hilbert", height, width)),
        (f"random, seed {seed}", visit_order("random", height, width, seed=seed)),
    ]
    for index, (corner, direction) in enumerate(CORNER_DIRECTIONS):
        title = f"zigzag {index + 1}: {corner}, {direction}"
        orders.append((title, visit_order("zigzag", height, width, index=index)))
    return orders
