import pytest
import torch

import zigma_pl
from zigma_pl.errors import UserError
from zigma_pl.nn import mixer as mixer_module
from zigma_pl.nn.mixer import MambaMixer
from zigma_pl.scan.paths import visit_order
from zigma_pl.scan.schedule import ScanConfig


def test_step_sizes_start_between_a_thousandth_and_a_tenth():
    torch.manual_seed(0)
    mixer = MambaMixer(64)
    dt = torch.nn.functional.softplus(mixer.dt_proj.bias)
    assert dt.min() >= 0.99e-3
    assert dt.max() <= 0.101
    assert dt.log().std() > 1.0  # spread over the whole range, not one value
    assert torch.equal(-mixer.A_log.exp()[5].round(), -torch.arange(1.0, 17.0))


def test_order_is_an_index_and_rows_stay_where_they_were():
    torch.manual_seed(0)
    mixer = MambaMixer(16)
    tokens, order = torch.randn(2, 12, 16), torch.randperm(12)
    arranged = mixer(tokens[:, order])
    expected = torch.empty_like(arranged)
    expected[:, order] = arranged
    torch.testing.assert_close(mixer(tokens, order.int()), expected)


def test_mixing_is_causal_along_the_order():
    torch.manual_seed(0)
    mixer, order = MambaMixer(16), torch.randperm(12)
    tokens = torch.randn(1, 12, 16)
    changed = tokens.clone()
    changed[:, order[7]] += 1.0
    moved = (mixer(tokens, order.int()) - mixer(changed, order.int())).abs().amax(-1)[0] > 0
    assert not moved[order[:7]].any()
    assert moved[order[7:]].all()


@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
def test_block_scans_any_grid_along_its_order(grid):
    torch.manual_seed(0)
    block = zigma_pl.ZigzagMamba(16, order_index=11)
    tokens = torch.randn(2, grid[0] * grid[1], 16)
    order = torch.as_tensor(visit_order("zigzag", *grid, index=11 % 8))
    out = block(tokens, grid)
    assert out.shape == tokens.shape
    torch.testing.assert_close(out, block.mixer(tokens, order.int()))


def test_square_grid_is_the_default_and_others_are_refused():
    block = zigma_pl.ZigzagMamba(16, scan=ScanConfig(scheme="sweep", num_orders=1))
    tokens = torch.randn(1, 9, 16)
    torch.testing.assert_close(block(tokens), block.mixer(tokens))
    with pytest.raises(UserError, match=r"10 tokens do not fill a 3 x 3 grid"):
        block(torch.randn(1, 10, 16))


@pytest.mark.parametrize("wanted", [False, True])
def test_deterministic_training_reaches_both_ops(wanted, monkeypatch):
    seen = []

    def watch(name):
        original = getattr(mixer_module, name)
        monkeypatch.setattr(mixer_module, name, lambda *a, **k: seen.append(k["deterministic"]) or original(*a, **k))

    watch("causal_conv1d")
    watch("selective_scan")
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: wanted)
    MambaMixer(16)(torch.randn(1, 4, 16))
    assert seen == [wanted, wanted]


def test_channels_are_sorted_by_their_step_sizes_which_changes_no_number(monkeypatch):
    tokens, order = torch.randn(2, 12, 16), torch.randperm(12)
    torch.manual_seed(0)
    mixer = MambaMixer(16).double()
    assert (mixer.dt_proj.bias.diff() >= 0).all()
    monkeypatch.setattr(MambaMixer, "sort_channels", lambda self: None)
    torch.manual_seed(0)
    unsorted = MambaMixer(16).double()
    for each in (mixer, unsorted):  # at first all equal, by which no mistake would show
        generator, names = torch.Generator().manual_seed(0), ("conv_bias", "A_log", "D")
        by_step_size = each.dt_proj.bias.argsort()
        for parameter in (getattr(each, name).data for name in names):
            parameter[by_step_size] += torch.rand(parameter.shape, generator=generator).double()
    torch.testing.assert_close(mixer(tokens.double(), order), unsorted(tokens.double(), order))
    monkeypatch.undo()
    expected = unsorted(tokens.double(), order)
    unsorted.sort_channels()
    assert (unsorted.dt_proj.bias.diff() >= 0).all()
    torch.testing.assert_close(unsorted(tokens.double(), order), expected)
