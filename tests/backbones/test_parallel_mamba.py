import functools

import pytest
import torch
from backbones import tiny

from zigma_pl.backbones import ParallelMamba, VisionMamba, ZigMa
from zigma_pl.mixers import Visit
from zigma_pl.models.mixers.mamba import MambaMixer
from zigma_pl.models.mixers.parallel import ParallelMixer
from zigma_pl.scan.paths import visit_order
from zigma_pl.scan.schedule import ScanConfig

PER_DIRECTION = ("conv_weight", "conv_bias", "x_proj.", "dt_proj.", "A_log", "D")


def split(mixer, direction):
    """Return the MambaMixer that has one direction of a ParallelMixer and its projections."""
    single = MambaMixer(mixer.in_proj.in_features)
    weights = {name: value for name, value in mixer.state_dict().items() if "proj" in name and "directions" not in name}
    single.load_state_dict(weights | mixer.directions[direction].state_dict())
    return single


@pytest.mark.parametrize("num_directions", [1, 3])
def test_mixer_is_the_sum_of_single_mixers(num_directions):
    torch.manual_seed(0)
    mixer, tokens = ParallelMixer(16, num_directions), torch.randn(2, 12, 16)
    orders = torch.stack([torch.randperm(12) for _ in range(num_directions)]).int()
    visits = [Visit(torch.empty(0), order) for order in (orders, *orders)]
    expected = sum(split(mixer, i)(tokens, visits[1 + i]) for i in range(num_directions))
    torch.testing.assert_close(mixer(tokens, visits[0]), expected)


def test_one_direction_is_zigma_with_one_order():
    scan = ScanConfig(num_orders=1)
    parallel, zigma = tiny.build(ParallelMamba, scan=scan), tiny.build(ZigMa, scan=scan)
    weights = {name.replace("directions.0.", ""): value for name, value in parallel.state_dict().items()}
    zigma.load_state_dict(weights)
    torch.testing.assert_close(parallel(*tiny.draw()), zigma(*tiny.draw()))


def test_every_layer_scans_all_orders():
    backbone = tiny.build(ParallelMamba, scan=ScanConfig(num_orders=5))
    expected = [visit_order("zigzag", 2, 3, index=index).tolist() for index in range(5)]
    assert all(backbone.visit(layer).order.tolist() == expected for layer in range(3))
    assert all(len(block.mixer.directions) == 5 for block in backbone.blocks)


def test_scan_parameters_grow_with_the_directions():
    one, three = (
        sum(
            value.numel()
            for name, value in backbone.named_parameters()
            if name.split("mixer.")[-1].find("directions") == 0
        )
        for backbone in (tiny.build(ParallelMamba, scan=ScanConfig(num_orders=k)) for k in (1, 3))
    )
    assert three == 3 * one


def test_size_is_matched_for_every_number_of_orders_and_with_captions():
    with tiny.without_values():
        make = functools.partial(ParallelMamba, 4, 32, 32, size="B")
        for options in ({}, {"caption_dim": 768}):
            expected = ZigMa(4, 32, 32, size="B", **options).num_parameters()
            for k in (2, 4, 5, 8):
                found = make(scan=ScanConfig(num_orders=k), **options).num_parameters()
                assert found == pytest.approx(expected, rel=0.03)
        assert len(make(depth=24).blocks) == 24


def test_vision_mamba_scans_forward_and_in_reverse():
    backbone = tiny.build(VisionMamba)
    assert backbone.visit(2).order.tolist() == [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]]


@pytest.mark.parametrize(("direction", "expected"), [(0, range(2, 6)), (1, range(3)), (None, range(6))])
def test_a_token_reaches_what_each_direction_visits_later(direction, expected):
    backbone = tiny.build(VisionMamba, depth=1, position_embedding="none")
    if direction is not None:  # silence the other one
        other = backbone.blocks[0].mixer.directions[1 - direction]
        torch.nn.init.zeros_(other.D)
        torch.nn.init.zeros_(other.x_proj.weight)
    assert tiny.reached(backbone, 2) == set(expected)


def test_both_directions_start_alike_with_their_own_weights():
    torch.manual_seed(0)
    for direction in ParallelMixer(64, 2).directions:
        dt = torch.nn.functional.softplus(direction.dt_proj.bias)
        assert 0.99e-3 < dt.min() < dt.max() < 0.101
        assert dt.log().std() > 1.0
        assert torch.equal(-direction.A_log.exp()[5].round(), -torch.arange(1.0, 17.0))
    first, second = ParallelMixer(64, 2).directions
    assert not torch.equal(first.x_proj.weight, second.x_proj.weight)
