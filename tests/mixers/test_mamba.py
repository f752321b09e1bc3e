import pytest
import torch

from zigma_pl.mixers import Visit
from zigma_pl.models.mixers import mamba
from zigma_pl.models.mixers.mamba import MambaMixer

POSITIONS = torch.zeros(12, 2)


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
    arranged = mixer(tokens[:, order], Visit(POSITIONS))
    expected = torch.empty_like(arranged)
    expected[:, order] = arranged
    torch.testing.assert_close(mixer(tokens, Visit(POSITIONS, order.int())), expected)


def test_mixing_is_causal_along_the_order():
    torch.manual_seed(0)
    mixer, order = MambaMixer(16), torch.randperm(12)
    tokens = torch.randn(1, 12, 16)
    changed = tokens.clone()
    changed[:, order[7]] += 1.0
    visit = Visit(POSITIONS, order.int())
    moved = (mixer(tokens, visit) - mixer(changed, visit)).abs().amax(-1)[0] > 0
    assert not moved[order[:7]].any()
    assert moved[order[7:]].all()


@pytest.mark.parametrize("wanted", [False, True])
def test_deterministic_training_reaches_both_ops(wanted, monkeypatch):
    seen = []

    def watch(name):
        original = getattr(mamba, name)
        monkeypatch.setattr(mamba, name, lambda *a, **k: seen.append(k["deterministic"]) or original(*a, **k))

    watch("causal_conv1d")
    watch("selective_scan")
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: wanted)
    MambaMixer(16)(torch.randn(1, 4, 16), Visit(POSITIONS))
    assert seen == [wanted, wanted]


def test_channels_are_sorted_by_their_step_sizes_which_changes_no_number(monkeypatch):
    tokens, visit = torch.randn(2, 12, 16).double(), Visit(POSITIONS, torch.randperm(12).int())
    torch.manual_seed(0)
    mixer = MambaMixer(16).double()
    assert (mixer.dt_proj.bias.diff() >= 0).all()
    monkeypatch.setattr(MambaMixer, "sort_channels", lambda self: None)
    torch.manual_seed(0)
    unsorted = MambaMixer(16).double()
    for each in (mixer, unsorted):  # at initialisation all are equal, which would hide errors
        generator, names = torch.Generator().manual_seed(0), ("conv_bias", "A_log", "D")
        by_step_size = each.dt_proj.bias.argsort()
        for parameter in (getattr(each, name).data for name in names):
            parameter[by_step_size] += torch.rand(parameter.shape, generator=generator).double()
    torch.testing.assert_close(mixer(tokens, visit), unsorted(tokens, visit))
    monkeypatch.undo()
    expected = unsorted(tokens, visit)
    unsorted.sort_channels()
    assert (unsorted.dt_proj.bias.diff() >= 0).all()
    torch.testing.assert_close(unsorted(tokens, visit), expected)
