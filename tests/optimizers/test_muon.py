"""Muon against torch's and a restatement in float64, its orthogonal updates, and steps that are skipped."""

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


def exact(matrix, num_iterations=5):
    """The Newton-Schulz iteration of one matrix, one step at a time."""
    x = matrix / matrix.norm()
    for _ in range(num_iterations):
        x = 3.4445 * x - 4.7750 * (x @ x.mT) @ x + 2.0315 * (x @ x.mT) @ (x @ x.mT) @ x
    return x


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
        assert (own - other).norm() < 0.1 * (other - start).norm()  # both iterate in bfloat16


@pytest.mark.parametrize("adjust_lr_fn", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("max_stack", [2**26, 100])
def test_it_computes_what_the_paper_says(monkeypatch, adjust_lr_fn, nesterov, max_stack):
    monkeypatch.setattr("zigma_pl.training.optimizers.muon.MAX_STACK", max_stack)
    ours, expected = matrices(), [matrix.detach().double() for matrix in matrices()]
    averages = [torch.zeros_like(matrix) for matrix in expected]
    options = {"lr": 0.1, "weight_decay": 0.2, "momentum": 0.9, "nesterov": nesterov, "adjust_lr_fn": adjust_lr_fn}
    muon = Muon(ours, dtype="float32", **options)
    for step in range(3):
        set_gradients(ours, step)
        muon.step()
        for parameter, matrix, average in zip(ours, expected, averages, strict=True):
            gradient = parameter.grad.double()
            average.copy_(0.9 * average + 0.1 * gradient)
            update = exact(0.9 * average + 0.1 * gradient if nesterov else average)
            height, width = matrix.shape
            by_shape = {"original": max(1, height / width) ** 0.5, "match_rms_adamw": 0.2 * max(height, width) ** 0.5}
            matrix.copy_((1 - 0.1 * 0.2) * matrix - 0.1 * by_shape[adjust_lr_fn] * update)
    for parameter, matrix in zip(ours, expected, strict=True):
        torch.testing.assert_close(parameter.detach().double(), matrix, atol=2e-5, rtol=0)


@pytest.mark.parametrize("num_iterations", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4), (torch.bfloat16, 5e-2)]
)
def test_iterations_at_once_are_the_iteration(shape, num_iterations, dtype, tolerance):
    matrix = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    update = orthogonalised(matrix.to(dtype), num_iterations)
    assert update.dtype == dtype
    for own, of_one in zip(update.double(), matrix, strict=True):
        expected = exact(of_one, num_iterations)
        assert (own - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_scale_of_gradients_does_not_matter(scale):
    matrix = torch.randn(3, 16, 40, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonalised(scale * matrix), orthogonalised(matrix), atol=1e-4, rtol=0)
    assert torch.equal(orthogonalised(torch.zeros(1, 16, 40, dtype=torch.bfloat16)), torch.zeros(1, 16, 40).bfloat16())


@pytest.mark.parametrize("exponent", [-2, -4])
def test_ill_conditioned_matrices_in_bfloat16(exponent):
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(size, 128, generator=generator))[0] for size in (128, 384))
    matrix = (u * torch.logspace(0, exponent, 128)) @ v.mT
    update, expected = orthogonalised(matrix[None].bfloat16())[0].double(), exact(matrix.double())
    assert (update - expected).norm() < 0.12 * expected.norm()
    assert torch.linalg.matrix_norm(update, 2) < 1.25


@pytest.mark.parametrize("exponent", [-1, -2, -3, -4])
@pytest.mark.parametrize(("height", "width"), [(512, 16), (16, 512), (64, 64), (256, 128)])
def test_rounding_does_not_raise_singular_values(height, width, exponent):
    """Values above 1.3 grow with each iteration; with updates that are too large, training diverges."""
    generator, rank = torch.Generator().manual_seed(0), min(height, width)
    u, v = (torch.linalg.qr(torch.randn(6, size, rank, generator=generator))[0] for size in (height, width))
    matrices = (u * torch.logspace(0, exponent, rank)) @ v.mT
    assert torch.linalg.svdvals(orthogonalised(matrices.bfloat16()).float()).max() < 1.25


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24)])
def test_updates_are_nearly_orthogonal_and_keep_their_directions(shape):
    matrix = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    update = orthogonalised(matrix)
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
