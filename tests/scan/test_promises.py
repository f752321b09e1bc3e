import math
from collections import Counter

import numpy as np
import pytest

from zigma_pl.scan import ScanConfig
from zigma_pl.scan.promises import EDGES, closeness, promises, regularity

NEIGHBOURS = {(row, column): 1 if row * column == 0 else 0.5 for row in (-1, 0, 1) for column in (-1, 0, 1)}
del NEIGHBOURS[0, 0]


def brute_force_reach(orders, height, width):
    places = [{int(token): step for step, token in enumerate(order)} for order in orders]
    total = num_expected = 0
    for row in range(height):
        for column in range(width):
            for (down, right), weight in NEIGHBOURS.items():
                if 0 <= row + down < height and 0 <= column + right < width:
                    token, near = row * width + column, (row + down) * width + column + right
                    steps = [place[token] - place[near] for place in places if place[near] < place[token]]
                    total += weight * (1 / min(steps) if steps else 0)
                    num_expected += weight
    return total / num_expected


def brute_force_regularity(order, width):
    by_lag = []
    for lag in (1, 2, 3):
        moves = [
            (order[step + lag] // width - order[step] // width, order[step + lag] % width - order[step] % width)
            for step in range(len(order) - lag)
        ]
        equal = sum(number**2 for number in Counter(moves).values())
        by_lag.append(equal / len(moves) ** 2)
    return sum(by_lag) / 3


@pytest.mark.parametrize("scheme", ["sweep", "zigzag", "hilbert", "random", "spiral", "dilated2"])
@pytest.mark.parametrize("num_orders", [1, 2, 8])
def test_reach_and_regularity_are_those_of_brute_force(scheme, num_orders):
    orders = ScanConfig(scheme, num_orders).orders(4, 5)
    found = promises(orders, 4, 5, depth=16)
    assert math.isclose(found.reach, brute_force_reach(orders, 4, 5))
    assert math.isclose(found.regularity, sum(brute_force_regularity(order, 5) for order in orders) / num_orders)


@pytest.mark.parametrize(("scheme", "value"), [("sweep", 0.89), ("zigzag", 0.44), ("hilbert", 0.17), ("random", 0.001)])
def test_regularity_at_1024_tokens(scheme, value):
    found = promises(ScanConfig(scheme).orders(32, 32), 32, 32, depth=16).regularity
    assert found == pytest.approx(value, abs=0.005 if value > 0.01 else 0.0005)


@pytest.mark.parametrize(
    ("scan", "value"),
    [
        ({"scheme": "sweep", "num_orders": 1}, 1),
        ({"scheme": "sweep", "num_orders": 2}, 2),
        ({"scheme": "sweep", "indices": (0, 6)}, 2),
        ({"scheme": "sweep", "num_orders": 4}, 3),
        ({"scheme": "sweep", "indices": (0, 1, 6, 7)}, 4),
        ({"scheme": "zigzag", "num_orders": 1}, 1),
        ({"scheme": "zigzag", "num_orders": 2}, 2),
        ({"scheme": "zigzag", "num_orders": 8}, 4),
        ({"scheme": "random"}, 0),
    ],
)
def test_directions(scan, value):
    assert promises(ScanConfig(**scan).orders(32, 32), 32, 32, depth=16).directions == pytest.approx(value, abs=0.15)


def test_closeness_is_that_of_the_nearest_order_in_which_the_neighbour_comes_first():
    sweep = np.arange(6)
    above, left, right, below = (closeness([sweep], 2, 3, edge) for edge in EDGES)
    np.testing.assert_allclose(above, [[1 / 3] * 3])
    np.testing.assert_allclose(left, [[1, 1], [1, 1]])
    assert not right.any()
    assert not below.any()
    columns = np.array([0, 3, 1, 4, 2, 5])
    np.testing.assert_allclose(closeness([sweep, columns], 2, 3, (-1, 0)), [[1] * 3])


def test_locality_falls_with_the_distance_and_is_0_beyond_the_grid():
    found = promises(ScanConfig("sweep").orders(8, 8), 8, 8, depth=16)
    assert found.locality == (1, 0.5, 0.25, 0)


def test_cost_counts_distinct_orders_of_the_layers_that_exist():
    orders = ScanConfig("zigzag", 8).orders(4, 4)
    assert promises(orders, 4, 4, depth=16).index_bytes == 8 * 16 * 4
    assert promises([*orders, *orders], 4, 4, depth=16).index_bytes == 8 * 16 * 4
    shallow = promises(orders, 4, 4, depth=2)
    assert shallow == promises(orders[:2], 4, 4, depth=16)
    assert shallow.cost == 1


def test_single_token_and_repeated_steps():
    only = promises([np.zeros(1, dtype=np.int32)], 1, 1, depth=1)
    assert (only.reach, only.regularity, only.directions) == (0, 1, 0)
    assert regularity(np.arange(9), 9) == 1
