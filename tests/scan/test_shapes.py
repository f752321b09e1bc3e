"""Each shape has the property that defines it; that all orders are permutations is tested in test_paths.py."""

from itertools import product
from typing import get_args

import numpy as np
import pytest

from zigma_pl.core.errors import UserError
from zigma_pl.scan import ScanConfig, SchemeName, adjacency, inverse, visit_order
from zigma_pl.scan.shapes import SHAPES

GRIDS = [(8, 8), (12, 20), (7, 9), (32, 32)]


def steps_of(name, height, width, index=0):
    return inverse(visit_order(name, height, width, index=index)).reshape(height, width)


def cells_of(name, height, width):
    return np.stack(np.divmod(visit_order(name, height, width), width), axis=1)


def test_every_shape_has_a_name_for_yaml():
    assert set(SHAPES) == set(get_args(SchemeName)) - {"hilbert", "random"}


@pytest.mark.parametrize(("height", "width"), GRIDS)
@pytest.mark.parametrize("name", sorted(set(SHAPES) - {"moore", "peano", "shifted_zigzag", "shifted_window4"}))
def test_orders_are_reflections_of_the_first_and_transposes(name, height, width):
    first, transposed = steps_of(name, height, width), steps_of(name, width, height).T
    for index, (rows, columns) in enumerate([(1, 1), (1, -1), (-1, 1), (-1, -1)]):
        np.testing.assert_array_equal(steps_of(name, height, width, 2 * index), first[::rows, ::columns])
        np.testing.assert_array_equal(steps_of(name, height, width, 2 * index + 1), transposed[::rows, ::columns])


def test_diagonal_is_the_order_of_jpeg_coefficients():
    assert steps_of("diagonal", 4, 4).tolist() == [[0, 1, 5, 6], [2, 4, 7, 12], [3, 8, 11, 13], [9, 10, 14, 15]]


def test_spiral_runs_clockwise_from_the_border_inwards():
    assert steps_of("spiral", 3, 4).tolist() == [[0, 1, 2, 3], [9, 10, 11, 4], [8, 7, 6, 5]]
    assert steps_of("spiral", 4, 1).tolist() == [[0], [1], [2], [3]]
    for height, width in GRIDS:
        assert adjacency(visit_order("spiral", height, width), height, width) == 1


@pytest.mark.parametrize("size", [2, 4])
def test_snake_is_connected_within_each_band_of_rows(size):
    for height, width in GRIDS:
        cells = cells_of(f"snake{size}", height, width)
        bands = cells[:, 0] // size
        assert np.all(np.diff(bands) >= 0)
        steps = np.abs(np.diff(cells, axis=0)).sum(axis=1)
        assert np.all(steps[np.diff(bands) == 0] == 1)
        assert np.all(np.abs(np.diff(cells[:, 1])) <= 1)


@pytest.mark.parametrize("name", ["window2", "window4", "window8", "block4", "block8"])
def test_windows_and_blocks_are_left_once_all_their_cells_are_visited(name):
    size = int(name[-1])
    for height, width in GRIDS:
        windows = cells_of(name, height, width) // size
        num_changes = np.any(np.diff(windows, axis=0) != 0, axis=1).sum()
        assert num_changes == -(-height // size) * -(-width // size) - 1


def test_a_window_is_swept_and_a_block_is_zigzagged():
    for name, inner in (("window4", "sweep"), ("block4", "zigzag")):
        np.testing.assert_array_equal(steps_of(name, 8, 8)[:4, :4], steps_of(inner, 4, 4))
    blocks = [steps_of("block4", 8, 8)[row, column] // 16 for row, column in ((0, 0), (0, 4), (4, 4), (4, 0))]
    assert blocks == [0, 1, 2, 3]


@pytest.mark.parametrize("size", [2, 4])
def test_dilated_sweeps_one_coarse_grid_after_the_other(size):
    steps = steps_of(f"dilated{size}", 8, 12)
    coarse = steps_of("sweep", 8 // size, 12 // size)
    for index, (row, column) in enumerate(product(range(size), repeat=2)):
        np.testing.assert_array_equal(steps[row::size, column::size], coarse + index * coarse.size)


def test_z_order_visits_quarter_after_quarter():
    steps = steps_of("z_order", 8, 8)
    assert steps[:2, :2].tolist() == [[0, 1], [2, 3]]
    for size in (2, 4):
        for row, column in product(range(0, 8, size), repeat=2):
            part = steps[row : row + size, column : column + size]
            np.testing.assert_array_equal(part - part[0, 0], steps[:size, :size])


@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 8), (32, 32), (8, 20)])
def test_moore_is_a_closed_curve(height, width):
    for index in range(8):
        order = visit_order("moore", height, width, index=index)
        assert adjacency(order, height, width) == 1
        first, last = divmod(order[0], width), divmod(order[-1], width)
        assert abs(first[0] - last[0]) + abs(first[1] - last[1]) == 1


@pytest.mark.parametrize("side", [3, 9, 27])
def test_peano_is_connected_and_visits_ninth_after_ninth(side):
    order = visit_order("peano", side, side)
    assert adjacency(order, side, side) == 1
    assert order[0] == 0
    assert order[-1] == side * side - 1
    ninths = np.stack(np.divmod(order, side)) // (side // 3)
    assert np.any(np.diff(ninths), axis=0).sum() == 8


@pytest.mark.parametrize(("name", "shift"), [("shifted_zigzag", 4), ("shifted_window4", 2)])
def test_shifted_orders_move_further_from_layer_to_layer(name, shift):
    usual = name.removeprefix("shifted_")
    for index in range(8):
        moved = np.roll(steps_of(name, 16, 24, index), (-index * shift,) * 2, axis=(0, 1))
        np.testing.assert_array_equal(moved, steps_of(usual, 16, 24, index), err_msg=str(index))


@pytest.mark.parametrize(
    ("name", "height", "width"), [("moore", 6, 8), ("moore", 9, 9), ("peano", 8, 8), ("peano", 9, 27), ("peano", 6, 6)]
)
def test_grids_without_the_curve_are_refused(name, height, width):
    with pytest.raises(UserError, match=f"{height} x {width}"):
        ScanConfig(name, 1).orders(height, width)
