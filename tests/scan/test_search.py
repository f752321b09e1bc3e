import numpy as np
import pytest

from zigma_pl.core.class_paths import build_described, described
from zigma_pl.core.errors import UserError
from zigma_pl.scan import MixedOrders, ScanConfig, TimeFirst, adjacency, clip_order, visit_order
from zigma_pl.scan.layers import whole_path
from zigma_pl.scan.paths import is_permutation
from zigma_pl.scan.promises import regularity
from zigma_pl.scan.search import order_pool, search


def test_search_only_yields_better_sets_and_finds_the_most_regular_scheme():
    def irregularity(orders):
        return -sum(regularity(whole_path(order), (8, 8)) for order in orders)

    found = list(search([("hilbert", 0), ("spiral", 3)], order_pool(8, 8), irregularity, num_trials=400, seed=1))
    scores = [score for score, _ in found]
    assert found[0] == (irregularity([visit_order("hilbert", 8, 8), visit_order("spiral", 8, 8, index=3)]),
                        [("hilbert", 0), ("spiral", 3)])  # fmt: skip
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == len(scores)
    assert {name for name, _ in found[-1][1]} <= {"sweep", "window8"}, "a window of the whole grid is a sweep"


def test_search_leaves_out_schemes_that_do_not_exist_for_the_grid():
    assert list(search([("sweep", 0)], order_pool(6, 9), lambda orders: 0.0, num_trials=300)) == [(0.0, [("sweep", 0)])]


def test_pool_of_clips_has_orders_frame_after_frame_and_time_first():
    pool = order_pool(4, 6, 3)
    np.testing.assert_array_equal(pool["zigzag", 3], clip_order("zigzag", 3, 4, 6, index=3))
    time_first = ScanConfig(TimeFirst("zigzag"), indices=(3,)).orders(4, 6, 3)[0]
    np.testing.assert_array_equal(pool["time_first zigzag", 3], time_first)
    assert all(is_permutation(order) for order in pool.values())
    assert len(pool) == 2 * len(order_pool(4, 6))


def test_time_first_visits_all_frames_at_a_position_before_the_next():
    order = TimeFirst("zigzag").order(0, 2, 2, 3)
    assert order.tolist() == [0, 4, 8, 9, 5, 1, 3, 7, 11, 10, 6, 2]
    assert adjacency(order, 2, 2, 3) == 1
    assert TimeFirst("sweep").order(1, 2, 2, 2).tolist() == [4, 0, 6, 2, 5, 1, 7, 3]
    np.testing.assert_array_equal(TimeFirst("spiral").order(2, 5, 4), visit_order("spiral", 5, 4, index=2))
    scan = ScanConfig(TimeFirst("hilbert"), 4)
    assert build_described(described(scan), ScanConfig) == scan
    for bad in ({"scheme": "zigzagg"}, {"seed": -1}):
        with pytest.raises(UserError):
            TimeFirst(**bad)
    with pytest.raises(UserError):
        ScanConfig(TimeFirst("zigzag"), indices=(8,)).orders(2, 2, 2)


def mixed():
    return MixedOrders((ScanConfig("sweep", indices=(0, 7)), ScanConfig("spiral", 1, both_ways=True)))


def test_mixed_orders_are_those_of_their_parts():
    scan = ScanConfig(mixed())
    assert scan.num_orders == 4
    spiral = visit_order("spiral", 5, 6)
    expected = [visit_order("sweep", 5, 6), visit_order("sweep", 5, 6, index=7), spiral, spiral[::-1]]
    np.testing.assert_array_equal(scan.orders(5, 6), expected)
    np.testing.assert_array_equal(scan.orders(5, 6, 3)[1], ScanConfig("sweep", indices=(7,)).orders(5, 6, 3)[0])


def test_mixed_orders_survive_a_config():
    scan = ScanConfig(mixed())
    assert build_described(described(scan), ScanConfig) == scan
    plain = {"class_path": "zigma_pl.scan.MixedOrders", "init_args": {"parts": [{"scheme": "sweep", "indices": [3]}]}}
    built = build_described({"scheme": plain}, ScanConfig)
    np.testing.assert_array_equal(built.orders(4, 4), [visit_order("sweep", 4, 4, index=3)])


def test_order_beyond_the_parts_is_refused():
    with pytest.raises(UserError):
        ScanConfig(mixed(), indices=(4,)).orders(5, 6)
