"""The shapes of visit orders: for each scheme, the keys by which the cells of a grid are sorted into a path.

`SHAPES` lists all schemes except hilbert and random. A shape is written once, for the path that starts in the top-left
corner and runs along rows; `shaped_order` reflects and transposes it into the eight orders of the scheme.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from zigma_pl.core.errors import UserError
from zigma_pl.scan.hilbert import curve_along

# (corner, direction) of the eight orders of a scheme, numbered as in the released checkpoints.
CORNER_DIRECTIONS = tuple(
    (corner, direction)
    for corner in ("top-left", "top-right", "bottom-left", "bottom-right")
    for direction in ("rows", "columns")
)

# (rows (H, W), columns (H, W), H, W) -> keys, each (H, W): cells are sorted by the first key, then the second, ...
Keys = Callable[[np.ndarray, np.ndarray, int, int], tuple[np.ndarray, ...]]


@dataclass(frozen=True)
class Shape:
    """One scheme.

    Args:
        keys: see `Keys`.
        fits: whether the shape exists for a grid of (height, width); None if it exists for every grid.
        sizes: the grids that fit, for the error.
        shift: number of cells, down and to the right, by which each order is moved further than the one before. The
            grid wraps around.
    """

    keys: Keys
    fits: Callable[[int, int], bool] | None = None
    sizes: str = ""
    shift: int = 0

    def exists_for(self, height: int, width: int) -> bool:
        """Return whether the shape exists for a grid."""
        return self.fits is None or self.fits(height, width)


def shaped_order(name: str, height: int, width: int, index: int) -> np.ndarray:
    """Return order `index`, 0 to 7, of a scheme in `SHAPES`, (height * width,) int32 raster indices.

    Raises:
        UserError: the scheme does not exist for a grid of this size.
    """
    shape = SHAPES[name]
    if not shape.exists_for(height, width):
        raise UserError(
            f"scan.scheme: {name} exists only for {shape.sizes}, not for {height} x {width}: choose another grid or "
            "scheme"
        )
    corner, direction = CORNER_DIRECTIONS[index]
    cells = np.arange(height * width, dtype=np.int32).reshape(height, width)
    cells = np.roll(cells, (-index * shape.shift, -index * shape.shift), axis=(0, 1))
    cells = cells[::-1] if "bottom" in corner else cells
    cells = cells[:, ::-1] if "right" in corner else cells
    cells = cells.T if direction == "columns" else cells
    rows, columns = np.indices(cells.shape)
    keys = shape.keys(rows, columns, *cells.shape)
    return cells.reshape(-1)[np.lexsort([key.reshape(-1) for key in reversed(keys)])]


def _sweep(rows: np.ndarray, columns: np.ndarray, height: int, width: int) -> tuple[np.ndarray, ...]:
    """Row after row, all in the same direction."""
    return rows, columns


def _zigzag(rows: np.ndarray, columns: np.ndarray, height: int, width: int) -> tuple[np.ndarray, ...]:
    """Row after row, in alternating directions."""
    return rows, _alternating(columns, rows)


def _diagonal(rows: np.ndarray, columns: np.ndarray, height: int, width: int) -> tuple[np.ndarray, ...]:
    """Diagonal after diagonal, in alternating directions, as JPEG reads its coefficients."""
    return rows + columns, _alternating(columns, rows + columns)


def _spiral(rows: np.ndarray, columns: np.ndarray, height: int, width: int) -> tuple[np.ndarray, ...]:
    """Ring after ring, clockwise, from the border inwards."""
    below, right = height - 1 - rows, width - 1 - columns
    ring = np.minimum(np.minimum(rows, below), np.minimum(columns, right))
    sides = [rows == ring, right == ring, below == ring]
    across, down = width - 2 * ring, height - 2 * ring
    steps = [columns - ring, across + rows - ring, across + down + right - ring]
    return ring, np.select(sides, steps, default=2 * across + down + below - ring)


def _snake(rows: np.ndarray, columns: np.ndarray, height: int, width: int, *, size: int) -> tuple[np.ndarray, ...]:
    """Band after band of `size` rows, in alternating directions; a band is traversed column by column, up and down."""
    band = rows // size
    return band, _alternating(columns, band), _alternating(rows, columns)


def _window(rows: np.ndarray, columns: np.ndarray, height: int, width: int, *, size: int) -> tuple[np.ndarray, ...]:
    """A sweep over windows of `size` x `size` cells, each scanned by a sweep (LocalMamba, arXiv:2403.09338)."""
    return rows // size, columns // size, rows, columns


def _block(rows: np.ndarray, columns: np.ndarray, height: int, width: int, *, size: int) -> tuple[np.ndarray, ...]:
    """A zigzag over blocks of `size` x `size` cells, each scanned by a zigzag."""
    return rows // size, _alternating(columns // size, rows // size), rows, _alternating(columns, rows % size)


def _dilated(rows: np.ndarray, columns: np.ndarray, height: int, width: int, *, size: int) -> tuple[np.ndarray, ...]:
    """Sweeps over every `size`-th cell of every `size`-th row (EfficientVMamba, arXiv:2403.09977)."""
    return rows % size, columns % size, rows, columns


def _z_order(rows: np.ndarray, columns: np.ndarray, height: int, width: int) -> tuple[np.ndarray, ...]:
    """By the interleaved binary digits of row and column: quarter after quarter, and so on within each."""
    digits = range(max(height, width).bit_length(), -1, -1)
    return tuple(coordinate >> digit & 1 for digit in digits for coordinate in (rows, columns))


def _moore(rows: np.ndarray, columns: np.ndarray, height: int, width: int) -> tuple[np.ndarray, ...]:
    """A closed curve of four Hilbert curves: down the left half of the grid and back up the right half."""
    quarter = curve_along(height // 2, width // 2) * [1, -1] + [0, width // 2 - 1]
    left = np.concatenate([quarter, quarter + np.array([height // 2, 0])])
    steps = np.empty((height, width), dtype=np.int64)
    steps[tuple(np.concatenate([left, [height - 1, width - 1] - left]).T)] = np.arange(height * width)
    return (steps,)


def _peano(rows: np.ndarray, columns: np.ndarray, height: int, width: int) -> tuple[np.ndarray, ...]:
    """Peano's curve, a zigzag over nine squares that each contain a zigzag over nine squares, and so on."""
    keys: list[np.ndarray] = []
    size = height
    # Peano's formulas: a digit is mirrored if the digits of the other coordinate before it have an odd sum.
    row_sum, column_sum = np.zeros_like(rows), np.zeros_like(columns)
    while size > 1:
        size //= 3
        row, column = rows // size % 3, columns // size % 3
        keys.append(np.where(column_sum % 2, 2 - row, row))
        row_sum = row_sum + row
        keys.append(np.where(row_sum % 2, 2 - column, column))
        column_sum = column_sum + column
    return tuple(keys) or (rows,)


def _alternating(values: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """Return the values as a sort key that is descending in odd lines."""
    return np.where(lines % 2, -values, values)


def _has_sides_of_4(height: int, width: int) -> bool:
    return height % 4 == 0 and width % 4 == 0


def _is_power_of_3_square(height: int, width: int) -> bool:
    return height == width and 3**20 % height == 0


SHAPES: dict[str, Shape] = {
    "sweep": Shape(_sweep),
    "zigzag": Shape(_zigzag),
    "diagonal": Shape(_diagonal),
    "spiral": Shape(_spiral),
    "snake2": Shape(partial(_snake, size=2)),
    "snake4": Shape(partial(_snake, size=4)),
    "window2": Shape(partial(_window, size=2)),
    "window4": Shape(partial(_window, size=4)),
    "window8": Shape(partial(_window, size=8)),
    "block4": Shape(partial(_block, size=4)),
    "block8": Shape(partial(_block, size=8)),
    "dilated2": Shape(partial(_dilated, size=2)),
    "dilated4": Shape(partial(_dilated, size=4)),
    "z_order": Shape(_z_order),
    "moore": Shape(_moore, _has_sides_of_4, "sides that are multiples of 4"),
    "peano": Shape(_peano, _is_power_of_3_square, "squares with a power of 3 as side"),
    "shifted_zigzag": Shape(_zigzag, shift=4),
    "shifted_window4": Shape(partial(_window, size=4), shift=2),
}
