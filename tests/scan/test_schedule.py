from dataclasses import asdict

import numpy as np
import pytest
from jsonargparse import ArgumentParser

from zigma_pl.core.errors import UserError
from zigma_pl.scan import ScanConfig, inverse, visit_order
from zigma_pl.scan.schedule import LayerOrder

DEFAULT = ScanConfig()


class Model:
    def __init__(self, scan: ScanConfig = DEFAULT) -> None:
        self.scan = scan


@pytest.mark.parametrize("scheme", ["sweep", "zigzag", "hilbert", "random"])
def test_k_orders_are_the_first_k_of_the_scheme(scheme: str) -> None:
    for num_orders in (1, 2, 3, 8):
        orders = ScanConfig(scheme, num_orders, seed=5).orders(4, 4)
        assert len(orders) == num_orders
        for index, order in enumerate(orders):
            np.testing.assert_array_equal(order, visit_order(scheme, 4, 4, index=index, seed=5))


def test_default_is_the_eight_zigzags() -> None:
    assert [order[0] for order in ScanConfig().orders(3, 5)] == [0, 0, 4, 4, 10, 10, 14, 14]


def test_sweep_with_one_order_is_the_raster() -> None:
    (order,) = ScanConfig("sweep", num_orders=1).orders(3, 5)
    np.testing.assert_array_equal(order, np.arange(15))


def test_layers_wrap_around() -> None:
    config = ScanConfig("zigzag", num_orders=3)
    orders, layers = config.layer_orders([1] * 8, 4, 6)
    assert len(orders) == 3
    assert [layer.order for layer in layers] == [0, 1, 2, 0, 1, 2, 0, 1]
    for layer, (axis, index) in enumerate(layers):
        assert axis is None
        np.testing.assert_array_equal(orders[index], visit_order("zigzag", 4, 6, index=layer % 3))


def test_layers_may_take_other_orders_than_the_first() -> None:
    config = ScanConfig("sweep", indices=(0, 6))
    assert config.num_orders == 2
    forward = np.arange(12)
    orders, layers = config.layer_orders([1] * 4, 3, 4)
    assert [layer.order for layer in layers] == [0, 1, 0, 1]
    np.testing.assert_array_equal(orders, [forward, forward[::-1]])
    clip, _ = ScanConfig("sweep", indices=(6,), video="factorized", plan=("space",)).layer_orders([1, 1], 3, 4, 2)
    np.testing.assert_array_equal(clip[0], forward[::-1])
    assert ScanConfig(**asdict(config)) == config


def test_layers_that_ignore_orders_do_not_count() -> None:
    """With attention in every fourth layer, orders 3 and 7 would never be used if all layers counted."""
    config = ScanConfig("zigzag", num_orders=8)
    orders, layers = config.layer_orders([1, 1, 1, 0] * 6, 2, 3)
    assert [layer.order for layer in layers] == [
        *(0, 1, 2, None, 3, 4, 5, None, 6, 7, 0, None),
        *(1, 2, 3, None, 4, 5, 6, None, 7, 0, 1, None),
    ]
    for index, order in enumerate(orders):
        np.testing.assert_array_equal(order, visit_order("zigzag", 2, 3, index=index))
    assert config.layer_orders([0, 0], 2, 3) == ([], [LayerOrder(), LayerOrder()])


def test_layers_of_several_directions_take_the_next_orders() -> None:
    expected = [visit_order("zigzag", 2, 3, index=index) for index in range(4)]
    orders, layers = ScanConfig("zigzag", num_orders=4).layer_orders([2, 1, 2, 4, 4], 2, 3)
    taken = [(0, 1), (2,), (3, 0), (1, 2, 3, 0), (1, 2, 3, 0)]
    assert len(orders) == 4
    for (_, index), chosen in zip(layers, taken, strict=True):
        assert index is not None
        stacked = np.stack([expected[order] for order in chosen])
        np.testing.assert_array_equal(orders[index], stacked if len(chosen) > 1 else stacked[0])


@pytest.mark.parametrize("num_frames", [None, 3])
def test_both_ways_puts_the_reverse_after_each_order(num_frames: int | None) -> None:
    config = ScanConfig("zigzag", num_orders=2, both_ways=True)
    assert config.period == 4
    first, back, second, again = config.orders(2, 3, num_frames)
    np.testing.assert_array_equal([first, second], ScanConfig("zigzag", num_orders=2).orders(2, 3, num_frames))
    np.testing.assert_array_equal([back, again], [first[::-1], second[::-1]])


def test_random_takes_any_number_of_orders_from_its_seed() -> None:
    nine, twelve, other = (
        [order.tolist() for order in ScanConfig("random", num_orders, seed).orders(5, 5)]
        for num_orders, seed in ((9, 7), (12, 7), (9, 8))
    )
    assert nine == twelve[:9]
    assert not any(order in nine for order in other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"legacy_inverse": True}, "scan.legacy_inverse: .*hilbert.*zigzag"),
        ({"scheme": "sweep", "num_orders": 9}, "scan.num_orders"),
        ({"indices": [0, 8]}, "scan.indices"),
        ({"scheme": "random", "indices": [-1]}, "scan.indices"),
        ({"indices": []}, "scan.num_orders"),
        ({"scheme": "zigzagN8"}, "scan.scheme: unknown 'zigzagN8'"),
    ],
)
def test_bad_options_get_one_clear_line(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ScanConfig(**options)


def test_inverted_hilbert_orders_exist_for_images_only() -> None:
    config = ScanConfig("hilbert", num_orders=2, legacy_inverse=True)
    for index, order in enumerate(config.orders(4, 4)):
        np.testing.assert_array_equal(order, inverse(visit_order("hilbert", 4, 4, index=index)))
    with pytest.raises(UserError, match=r"scan\.legacy_inverse.*clips"):
        config.orders(4, 4, num_frames=2)


def test_nested_option_group_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(Model, "model")
    given = ["--model.scan.scheme=random", "--model.scan.num_orders=2", "--model.scan.seed=3"]
    assert parser.instantiate(parser.parse_args(given)).model.scan == ScanConfig("random", 2, 3)
    assert parser.instantiate(parser.parse_args([])).model.scan == DEFAULT
    assert "number of the scheme's orders" in " ".join(parser.format_help().split())
    for wrong in ("--model.scan.scheme=zigzagN8", "--model.scan.orders=2", "--model.scan.num_orders=two"):
        with pytest.raises(SystemExit):
            parser.parse_args([wrong])
    assert "Expected a <class 'int'>" in capsys.readouterr().err
