import math
from collections import Counter

import numpy as np
import pytest

from zigma_pl.scan import ScanConfig
from zigma_pl.scan.layers import Attention, Path, Scan, cycled_layers, layers_of_scan, whole_path
from zigma_pl.scan.promises import closeness, promises, regularity

NEIGHBOURS = {(row, column): 1 if row * column == 0 else 0.5 for row in (-1, 0, 1) for column in (-1, 0, 1)}
del NEIGHBOURS[0, 0]
EDGES = ((-1, 0), (0, -1), (0, 1), (1, 0))


def promises_of(orders, height, width, depth):
    return promises(cycled_layers([whole_path(order) for order in orders], [Scan()] * depth), (height, width))


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
    found = promises_of(orders, 4, 5, depth=16)
    assert math.isclose(found.reach, brute_force_reach(orders, 4, 5))
    assert math.isclose(found.regularity, sum(brute_force_regularity(order, 5) for order in orders) / num_orders)


@pytest.mark.parametrize(("scheme", "value"), [("sweep", 0.89), ("zigzag", 0.44), ("hilbert", 0.17), ("random", 0.001)])
def test_regularity_at_1024_tokens(scheme, value):
    found = promises_of(ScanConfig(scheme).orders(32, 32), 32, 32, depth=16).regularity
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
    assert promises_of(ScanConfig(**scan).orders(32, 32), 32, 32, depth=16).directions == pytest.approx(value, abs=0.15)


def test_closeness_is_that_of_the_nearest_order_in_which_the_neighbour_comes_first():
    sweep = np.arange(6)
    above, left, right, below = (closeness([whole_path(sweep)], (2, 3), edge) for edge in EDGES)
    np.testing.assert_allclose(above, [[1 / 3] * 3])
    np.testing.assert_allclose(left, [[1, 1], [1, 1]])
    assert not right.any()
    assert not below.any()
    columns = np.array([0, 3, 1, 4, 2, 5])
    np.testing.assert_allclose(closeness([whole_path(sweep), whole_path(columns)], (2, 3), (-1, 0)), [[1] * 3])


def test_locality_falls_with_the_distance_and_is_0_beyond_the_grid():
    found = promises_of(ScanConfig("sweep").orders(8, 8), 8, 8, depth=16)
    assert found.locality == (1, 0.5, 0.25, 0)


def test_cost_counts_distinct_orders_of_the_layers_that_exist():
    orders = ScanConfig("zigzag", 8).orders(4, 4)
    assert promises_of(orders, 4, 4, depth=16).index_bytes == 8 * 16 * 4
    assert promises_of([*orders, *orders], 4, 4, depth=16).index_bytes == 8 * 16 * 4
    shallow = promises_of(orders, 4, 4, depth=2)
    assert shallow == promises_of(orders[:2], 4, 4, depth=16)
    assert shallow.cost == 1


def test_single_token_and_repeated_steps():
    only = promises_of([np.zeros(1, dtype=np.int32)], 1, 1, depth=1)
    assert (only.reach, only.regularity, only.directions) == (0, 1, 0)
    assert regularity(whole_path(np.arange(9)), (1, 9)) == 1


def brute_force_clip(paths, grid):
    """Reach and directions of sequences of tokens, each a list of paths' sequences."""
    tokens = {index: int(np.ravel_multi_index(index, grid)) for index in np.ndindex(grid)}
    places = [
        {int(token): (sequence, step) for sequence, each in enumerate(path) for step, token in enumerate(each)}
        for path in paths
    ]
    total = num_expected = directly = 0
    for index, token in tokens.items():
        for move in np.ndindex(3, 3, 3):
            near = tuple(i + m - 1 for i, m in zip(index, move, strict=True))
            if near == index or near not in tokens:
                continue
            differing = sum(m != 1 for m in move)
            found = 0
            for place in places:
                (sequence, step), (other, before) = place[token], place[tokens[near]]
                if sequence == other and before < step:
                    found = max(found, 1 / (step - before))
            total += found / differing
            num_expected += 1 / differing
            directly += differing == 1 and found == 1
    return total / num_expected, directly / len(tokens)


def test_clips_have_the_numbers_of_brute_force():
    grid = (3, 2, 3)
    whole = ScanConfig("zigzag", 8)
    found = promises(layers_of_scan(whole, [Scan()] * 8, *grid[1:], 3), grid)
    expected = brute_force_clip([[order] for order in whole.orders(2, 3, 3)], grid)
    assert (found.reach, found.directions) == pytest.approx(expected)
    factorized = ScanConfig("zigzag", 2, video="factorized", plan=("space", "time"))
    found = promises(layers_of_scan(factorized, [Scan()] * 4, *grid[1:], 3), grid)
    space = [[order + 6 * frame for frame in range(3)] for order in factorized.orders(2, 3)]
    time = [[np.arange(3)[::step] * 6 + position for position in range(6)] for step in (1, -1)]
    assert (found.reach, found.directions) == pytest.approx(brute_force_clip([*space, *time], grid))
    assert found.index_bytes == 4 * (6 + 6 + 3 + 3)


def test_steps_between_sequences_have_no_regularity():
    order = np.arange(12)
    assert regularity(Path(order, 4), (3, 4)) == 1
    assert regularity(Path(order, 12), (3, 4)) < 1
    assert regularity(Path(order, 1), (3, 4)) == 1


def test_layers_of_attention_have_no_path():
    sweep = ScanConfig("sweep", 1)
    scans, hybrid = (layers_of_scan(sweep, [Scan(), last], 4, 4) for last in (Scan(), Attention(2)))
    assert promises(hybrid, (4, 4)) == promises(scans, (4, 4))
    assert promises([Attention(2)], (4, 4))[:3] == (0, 1, 0)


def test_parallel_directions_cost_more_scans():
    layers = layers_of_scan(ScanConfig("sweep", 1, both_ways=True), [Scan()] * 2, 4, 4, num_directions=2)
    assert [len(layer.paths) for layer in layers] == [2, 2]
    assert promises(layers, (4, 4)).cost == 2
