"""Muon against torch's, its orthogonal updates, and steps that are skipped."""

import copy

import pytest
import torch
from torch import nn

from zigma_pl.core.errors import UserError
from zigma_pl.optimizers import Muon
from zigma_pl.training.callbacks.non_finite import skip_step
from zigma_pl.training.optimizers.muon import orthogonalised

SHAPES = [(8, 12), (12, 8), (8, 12), (6, 6), (8, 12)]


def matrices():
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def set_gradients(parameters, step):
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("adjust_lr_fn", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_it_computes_what_torch_does(adjust_lr_fn, nesterov):
    ours, theirs = matrices(), matrices()
    options = {"lr": 0.1, "weight_decay": 0.2, "momentum": 0.9, "nesterov": nesterov, "adjust_lr_fn": adjust_lr_fn}
    muon, reference = Muon(ours, **options), torch.optim.Muon(theirs, **options)
    for step in range(3):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        muon.step()
        reference.step()
    for own, other, start in zip(ours, theirs, matrices(), strict=True):
        assert (own - other).norm() < 2e-2 * (other - start).norm()  # both iterate in bfloat16


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24)])
def test_updates_are_nearly_orthogonal_and_keep_their_directions(shape):
    matrix = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    update = orthogonalised(matrix, dtype=torch.float64)
    values = torch.linalg.svdvals(update)
    assert values.min() > 0.5
    assert values.max() < 1.3
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    rotated = u.mT @ update @ vh.mT  # diagonal where the singular vectors are kept
    torch.testing.assert_close(rotated, torch.diag_embed(rotated.diagonal(dim1=-2, dim2=-1)), atol=1e-10, rtol=0)


def test_a_resumed_run_is_bit_equal():
    whole, resumed = matrices(), matrices()
    first = Muon(whole, lr=0.1)
    for step in range(4):
        set_gradients(whole, step)
        first.step()
        if step == 1:
            saved = copy.deepcopy(first.state_dict())
            with torch.no_grad():
                for target, source in zip(resumed, whole, strict=True):
                    target.copy_(source)
    second = Muon(resumed, lr=0.1)
    second.load_state_dict(saved)
    for step in (2, 3):
        set_gradients(resumed, step)
        second.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


@pytest.mark.parametrize("skipped", [True, False])
def test_a_step_can_be_skipped_by_a_flag_on_the_device(skipped):
    parameters = matrices()
    muon = Muon(parameters, lr=0.1, weight_decay=0.1)
    set_gradients(parameters, 0)
    muon.step()
    before = copy.deepcopy([*parameters, *(state["momentum_buffer"] for state in muon.state.values())])
    set_gradients(parameters, 1)
    if skipped:
        parameters[2].grad[0, 0] = torch.nan
    skip_step(muon, torch.tensor(skipped))
    assert all(parameter.grad is not None for parameter in parameters)  # nothing has waited for the device
    muon.step()
    after = [*parameters, *(state["momentum_buffer"] for state in muon.state.values())]
    assert all(torch.equal(a, b) == skipped for a, b in zip(before, after, strict=True))


def test_a_vector_is_refused():
    with pytest.raises(UserError, match="ByRole"):
        Muon([nn.Parameter(torch.zeros(3))])
