from itertools import product

import numpy as np
import pytest

from zigma_pl.core.errors import UserError
from zigma_pl.scan import ScanConfig, adjacency, clip_order, visit_order
from zigma_pl.scan.paths import is_permutation

SMALL = list(product(range(1, 6), range(1, 6), range(1, 6)))
LARGER = [(16, 16, 16), (7, 4, 9), (2, 33, 5), (30, 1, 1), (3, 20, 17)]


def visited_frames(order: np.ndarray, num_frames: int) -> list[int]:
    """Return the frame of every run of tokens of one frame."""
    frames = order // (len(order) // num_frames)
    return frames[np.flatnonzero(np.diff(frames, prepend=-1))].tolist()


@pytest.mark.parametrize("name", ["sweep", "zigzag", "hilbert", "random"])
def test_order_is_a_bijection_of_every_clip(name: str) -> None:
    for num_frames, height, width in SMALL + LARGER:
        for index in range(8):
            order = clip_order(name, num_frames, height, width, index=index)
            assert order.dtype == np.int32
            assert len(order) == num_frames * height * width
            assert is_permutation(order), (num_frames, height, width, index)


@pytest.mark.parametrize("name", ["zigzag", "hilbert"])
def test_path_is_continuous_in_space_and_time(name: str) -> None:
    for num_frames, height, width in SMALL + LARGER:
        for index in range(8):
            order = clip_order(name, num_frames, height, width, index=index)
            assert adjacency(order, height, width, num_frames) == 1, (num_frames, height, width, index)


@pytest.mark.parametrize("name", ["sweep", "zigzag", "hilbert", "random"])
def test_one_frame_has_the_orders_of_an_image(name: str) -> None:
    for index in range(8):
        expected = visit_order(name, 4, 6, index=index, seed=2)
        np.testing.assert_array_equal(clip_order(name, 1, 4, 6, index=index, seed=2), expected)


def test_zigzags_of_three_frames_of_2x2_by_hand() -> None:
    assert clip_order("zigzag", 3, 2, 2).tolist() == [0, 1, 3, 2, 6, 7, 5, 4, 8, 9, 11, 10]
    assert clip_order("zigzag", 3, 2, 2, index=1).tolist() == [8, 10, 11, 9, 5, 7, 6, 4, 0, 2, 3, 1]
    assert clip_order("sweep", 3, 2, 2).tolist() == list(range(12))
    assert clip_order("sweep", 3, 2, 2, index=1).tolist() == [8, 10, 9, 11, 4, 6, 5, 7, 0, 2, 1, 3]


@pytest.mark.parametrize("name", ["sweep", "zigzag"])
def test_the_eight_orders_begin_in_the_eight_corners_of_the_clip(name: str) -> None:
    starts = {int(clip_order(name, 3, 4, 5, index=index)[0]) for index in range(8)}
    assert starts == {frame * 20 + corner for frame in (0, 2) for corner in (0, 4, 15, 19)}


@pytest.mark.parametrize("name", ["sweep", "zigzag", "hilbert"])
def test_whole_frames_one_after_another_half_of_the_orders_backward(name: str) -> None:
    forward = [0, 1, 2, 3]
    for index in range(8):
        expected = forward if index in (0, 3, 5, 6) else forward[::-1]
        assert visited_frames(clip_order(name, 4, 3, 4, index=index), 4) == expected


def test_random_mixes_the_frames_and_is_pinned_to_its_seed() -> None:
    assert clip_order("random", 2, 1, 3).tolist() == [3, 1, 4, 5, 2, 0]
    assert len(visited_frames(clip_order("random", 4, 4, 4, seed=1), 4)) > 20
    assert not np.array_equal(clip_order("random", 2, 4, 4, seed=1), clip_order("random", 2, 4, 4, seed=2))


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("zigzag", (0, 4, 4), "at least 1 frame, not 0"),
        ("zigzag", (2, 0, 4), "at least 1 x 1"),
    ],
)
def test_bad_input_gets_one_clear_line(name: str, sizes: tuple[int, int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        clip_order(name, *sizes)


def test_adjacency_of_clips_by_hand() -> None:
    assert adjacency(np.array([0, 1, 5, 4, 2, 3, 7, 6]), 2, 2, num_frames=2) == pytest.approx(6 / 7)  # 4 to 2 jumps
    with pytest.raises(UserError, match="5 tokens does not fit a grid of 2 x 2 x 2"):
        adjacency(np.arange(5), 2, 2, num_frames=2)


def test_3d_layers_take_the_orders_of_the_clip_in_turn() -> None:
    orders, layers = ScanConfig("zigzag", num_orders=3).layer_orders([1] * 5, 2, 3, num_frames=4)
    assert layers == [(None, 0), (None, 1), (None, 2), (None, 0), (None, 1)]
    for index, order in enumerate(orders):
        np.testing.assert_array_equal(order, clip_order("zigzag", 4, 2, 3, index=index))


def test_factorized_layers_take_the_zigzags_and_the_directions_of_time_in_turn() -> None:
    orders, layers = ScanConfig(video="factorized").layer_orders([1] * 24, 2, 3, num_frames=4)
    assert [layer.axis for layer in layers] == ["space", "space", "time"] * 8
    taken = [orders[index].tolist() for _, index in layers if index is not None]
    zigzags = [visit_order("zigzag", 2, 3, index=index).tolist() for index in range(8)]
    assert taken[0::3] == zigzags[0::2] * 2
    assert taken[1::3] == zigzags[1::2] * 2
    assert taken[2::3] == [[0, 1, 2, 3], [3, 2, 1, 0]] * 4


def test_plans_need_not_be_sst() -> None:
    config = ScanConfig("hilbert", 2, video="factorized", plan=("time", "space", "time"))
    orders, layers = config.layer_orders([1, 0, 1, 1, 1, 1, 1, 1], 2, 3, num_frames=2)
    assert [layer.axis for layer in layers] == ["time", None, "space", "time", "time", "space", "time", "time"]
    first, second = (visit_order("hilbert", 2, 3, index=index).tolist() for index in range(2))
    taken = [orders[index].tolist() for _, index in layers if index is not None]
    assert taken == [[0, 1], first, [1, 0], [0, 1], second, [1, 0], [0, 1]]


def test_plan_has_no_effect_on_images() -> None:
    plain, factorized = ScanConfig(), ScanConfig(video="factorized", plan=("time",))
    assert factorized.layer_orders([1] * 9, 2, 3)[1] == plain.layer_orders([1] * 9, 2, 3)[1]
    for a, b in zip(plain.layer_orders([1] * 9, 2, 3)[0], factorized.layer_orders([1] * 9, 2, 3)[0], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"video": "4d"}, "scan.video: unknown '4d'; choose one of 3d, factorized"),
        ({"plan": []}, r"scan\.plan: .*space, time"),
        ({"plan": ["space", "t"]}, r"scan.plan: .* got \['space', 't'\]"),
        ({"plan": "sst"}, r"scan.plan: "),
    ],
)
def test_bad_video_options_get_one_clear_line(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ScanConfig(**options)


def test_a_list_is_as_good_a_plan_and_configs_stay_hashable() -> None:
    assert ScanConfig(plan=["time", "space"]) == ScanConfig(plan=("time", "space"))  # type: ignore[arg-type]
    assert len({ScanConfig(plan=["space"]), ScanConfig(plan=("space",))}) == 1  # type: ignore[arg-type]
