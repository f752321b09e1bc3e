from itertools import product
from typing import get_args

import numpy as np
import pytest

from zigma_pl.core.errors import UserError
from zigma_pl.scan import SchemeName, adjacency, inverse, visit_order
from zigma_pl.scan.paths import is_permutation
from zigma_pl.scan.shapes import SHAPES

SMALL = list(product(range(1, 13), range(1, 13)))
LARGER = [(32, 32), (16, 24), (24, 16), (33, 47), (47, 33), (20, 17), (13, 20), (101, 10), (10, 101), (1, 64), (2, 63)]
ANY_GRID = sorted({"hilbert", "random", *SHAPES} - {"moore", "peano"})

# Rank of each cell on the classical Hilbert curve from the top-left to the bottom-left corner, drawn by hand.
HILBERT_RANKS_4 = [
    [0, 3, 4, 5],
    [1, 2, 7, 6],
    [14, 13, 8, 9],
    [15, 12, 11, 10],
]


def classical_hilbert_ranks(side: int) -> np.ndarray:
    """Hilbert's own recursion on a side x side grid, from the top-left to the bottom-left corner."""
    if side == 1:
        return np.zeros((1, 1), dtype=int)
    quarter = classical_hilbert_ranks(side // 2)
    size = quarter.size
    last = quarter[::-1, ::-1].T + 3 * size
    return np.block([[quarter.T, quarter + size], [last, quarter + 2 * size]])


def eight_symmetries(ranks: np.ndarray) -> list[np.ndarray]:
    turned = [np.rot90(ranks, quarter_turns) for quarter_turns in range(4)]
    return [grid for turn in turned for grid in (turn, turn.T)]


def mean_distance(order: np.ndarray, width: int, lag: int) -> float:
    rows, columns = np.divmod(order, width)
    return float(np.hypot(rows[lag:] - rows[:-lag], columns[lag:] - columns[:-lag]).mean())


@pytest.mark.parametrize("name", ANY_GRID)
def test_order_is_a_bijection_on_every_grid(name: SchemeName) -> None:
    for height, width in SMALL + LARGER:
        for index in range(8):
            order = visit_order(name, height, width, index=index)
            assert order.dtype == np.int32
            assert sorted(order.tolist()) == list(range(height * width)), (height, width, index)


@pytest.mark.parametrize("name", ["zigzag", "hilbert"])
def test_consecutive_tokens_share_an_edge_on_every_grid(name: SchemeName) -> None:
    for height, width in SMALL + LARGER:
        for index in range(8):
            assert adjacency(visit_order(name, height, width, index=index), height, width) == 1, (height, width, index)


def test_hilbert_is_connected_on_all_sizes_up_to_20() -> None:
    for height, width in product(range(1, 21), range(1, 21)):
        order = visit_order("hilbert", height, width)
        assert is_permutation(order), (height, width)
        assert adjacency(order, height, width) == 1, (height, width)


@pytest.mark.parametrize("name", ANY_GRID)
@pytest.mark.parametrize(("height", "width"), [(1, 7), (7, 1), (5, 5), (6, 9), (33, 47)])
def test_inverse_composed_with_order_is_the_identity(name: SchemeName, height: int, width: int) -> None:
    identity = np.arange(height * width)
    for index in range(8):
        order = visit_order(name, height, width, index=index)
        undo = inverse(order)
        assert undo.dtype == order.dtype
        np.testing.assert_array_equal(undo[order], identity)
        np.testing.assert_array_equal(order[undo], identity)


def test_inverse_by_hand_is_not_the_order_itself() -> None:
    np.testing.assert_array_equal(inverse(np.array([2, 0, 3, 1])), [1, 3, 0, 2])


@pytest.mark.parametrize("broken", [[0, 0, 1], [1, 2, 3], [[0, 1], [2, 3]]])
def test_inverse_refuses_what_is_no_permutation(broken: list) -> None:
    with pytest.raises(UserError, match="exactly once"):
        inverse(np.array(broken))


def test_eight_zigzags_3x3_by_hand() -> None:
    expected = [
        [0, 1, 2, 5, 4, 3, 6, 7, 8],
        [0, 3, 6, 7, 4, 1, 2, 5, 8],
        [2, 1, 0, 3, 4, 5, 8, 7, 6],
        [2, 5, 8, 7, 4, 1, 0, 3, 6],
        [6, 7, 8, 5, 4, 3, 0, 1, 2],
        [6, 3, 0, 1, 4, 7, 8, 5, 2],
        [8, 7, 6, 3, 4, 5, 2, 1, 0],
        [8, 5, 2, 1, 4, 7, 6, 3, 0],
    ]
    assert [visit_order("zigzag", 3, 3, index=index).tolist() for index in range(8)] == expected


def test_eight_zigzags_2x3_by_hand() -> None:
    expected = [
        [0, 1, 2, 5, 4, 3],
        [0, 3, 4, 1, 2, 5],
        [2, 1, 0, 3, 4, 5],
        [2, 5, 4, 1, 0, 3],
        [3, 4, 5, 2, 1, 0],
        [3, 0, 1, 4, 5, 2],
        [5, 4, 3, 0, 1, 2],
        [5, 2, 1, 4, 3, 0],
    ]
    assert [visit_order("zigzag", 2, 3, index=index).tolist() for index in range(8)] == expected


def test_eight_sweeps_2x3_by_hand() -> None:
    expected = [
        [0, 1, 2, 3, 4, 5],
        [0, 3, 1, 4, 2, 5],
        [2, 1, 0, 5, 4, 3],
        [2, 5, 1, 4, 0, 3],
        [3, 4, 5, 0, 1, 2],
        [3, 0, 4, 1, 5, 2],
        [5, 4, 3, 2, 1, 0],
        [5, 2, 4, 1, 3, 0],
    ]
    assert [visit_order("sweep", 2, 3, index=index).tolist() for index in range(8)] == expected


def test_hilbert_4x4_by_hand() -> None:
    np.testing.assert_array_equal(inverse(visit_order("hilbert", 4, 4)).reshape(4, 4), HILBERT_RANKS_4)


@pytest.mark.parametrize("side", [2, 8, 32])
def test_hilbert_on_powers_of_two_is_the_classical_curve_in_eight_symmetries(side: int) -> None:
    for index, ranks in enumerate(eight_symmetries(classical_hilbert_ranks(side))):
        np.testing.assert_array_equal(
            inverse(visit_order("hilbert", side, side, index=index)).reshape(side, side), ranks
        )


def test_first_hilbert_order_goes_from_the_top_left_along_the_longer_side() -> None:
    wide, tall, square = (visit_order("hilbert", height, width) for height, width in ((16, 24), (24, 16), (6, 6)))
    assert (wide[0], wide[-1]) == (0, 23)
    assert (tall[0], tall[-1]) == (0, 23 * 16)
    assert (square[0], square[-1]) == (0, 5 * 6)


def test_hilbert_has_eight_different_orders_on_every_grid_of_two_or_more_rows_and_columns() -> None:
    for height, width in product(range(2, 13), range(2, 13)):
        orders = {visit_order("hilbert", height, width, index=index).tobytes() for index in range(8)}
        assert len(orders) == 8, (height, width)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40), (40, 24), (33, 47), (21, 32)])
def test_hilbert_keeps_tokens_16_steps_apart_closer_than_line_by_line_orders(height: int, width: int) -> None:
    """A path with locality is about sqrt(16) cells away after 16 steps, a straight line 16."""
    hilbert, zigzag, sweep = (
        mean_distance(visit_order(name, height, width), width, lag=16) for name in ("hilbert", "zigzag", "sweep")
    )
    assert hilbert < 5
    assert 2 * hilbert < min(zigzag, sweep)


def test_legacy_inverse_4x4_by_hand() -> None:
    assert visit_order("hilbert", 4, 4, legacy_inverse=True).tolist() == np.ravel(HILBERT_RANKS_4).tolist()


@pytest.mark.parametrize("side", [4, 8, 32])
def test_legacy_inverse_is_the_inverse_of_the_true_curve_and_tears_it_apart(side: int) -> None:
    for index, ranks in enumerate(eight_symmetries(classical_hilbert_ranks(side))):
        legacy = visit_order("hilbert", side, side, index=index, legacy_inverse=True)
        np.testing.assert_array_equal(legacy, ranks.reshape(-1))
        np.testing.assert_array_equal(inverse(legacy), visit_order("hilbert", side, side, index=index))
        assert adjacency(legacy, side, side) < 0.5


def test_random_is_pinned_to_its_seed_and_index() -> None:
    """Checkpoints contain only the seed, so these numbers must never change."""
    assert visit_order("random", 2, 3).tolist() == [3, 1, 4, 5, 2, 0]
    assert visit_order("random", 2, 3, index=1).tolist() == [1, 3, 2, 0, 5, 4]
    assert visit_order("random", 2, 3, seed=1).tolist() == [4, 1, 3, 2, 0, 5]


def test_random_orders_differ_between_seeds_and_indices_and_repeat() -> None:
    orders = [visit_order("random", 8, 8, index=index, seed=seed) for seed in range(3) for index in range(12)]
    assert len({order.tobytes() for order in orders}) == len(orders)
    np.testing.assert_array_equal(visit_order("random", 8, 8, index=11, seed=2), orders[-1])
    assert max(adjacency(order, 8, 8) for order in orders) < 0.2


def test_adjacency_by_hand() -> None:
    assert adjacency(np.array([0]), 1, 1) == 1
    assert adjacency(visit_order("sweep", 2, 3), 2, 3) == pytest.approx(4 / 5)
    assert adjacency(np.array([0, 3, 1, 2]), 2, 2) == pytest.approx(1 / 3)  # diagonal, edge, diagonal
    assert adjacency(visit_order("sweep", 6, 1), 6, 1) == 1
    with pytest.raises(UserError, match="does not fit a grid of 2 x 2"):
        adjacency(np.arange(5), 2, 2)


@pytest.mark.parametrize(
    ("name", "height", "width", "options", "message"),
    [
        ("zigzag", 0, 8, {}, "at least 1 x 1, not 0 x 8"),
        ("hilbert", 8, -1, {}, "at least 1 x 1, not 8 x -1"),
        ("zigzag", 8, 8, {"index": 8}, "index must be 0 to 7"),
        ("sweep", 8, 8, {"index": -1}, "index must be 0 to 7"),
        ("random", 8, 8, {"seed": -1}, "seed must be 0 or more"),
        ("zigzagN8", 8, 8, {}, "choose one of sweep, zigzag"),
        ("hilbert", 8, 16, {"legacy_inverse": True}, "power of two"),
        ("hilbert", 12, 12, {"legacy_inverse": True}, "power of two"),
        ("sweep", 8, 8, {"legacy_inverse": True}, "legacy_inverse.*sweep"),
    ],
)
def test_bad_input_gets_one_clear_line(name: str, height: int, width: int, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        visit_order(name, height, width, **options)
    assert "\n" not in str(caught.value)


def test_every_scheme_is_covered_here() -> None:
    assert {*ANY_GRID, "moore", "peano"} == set(get_args(SchemeName))  # these two in test_shapes.py
