"""Linear maps with a bias: emulated CUDA kernels, compared with PyTorch's."""

import shutil

import pytest
import torch
from torch.nn import functional as F

from zigma_pl.core.torch_private import leaves_cast_once
from zigma_pl.ops import linear as op
from zigma_pl.ops.backends import relative_errors

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulation of CUDA needs g++, which is missing")


@pytest.fixture(autouse=True)
def fused(emulated, monkeypatch):
    """Use the CUDA implementation for CPU tensors."""
    monkeypatch.setattr(op, "_sums_fused", lambda rows, bias: bias.requires_grad)
    yield emulated
    assert emulated.launched


def make_arguments(dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = {"rows": (3, 37, 16), "weight": (24, 16), "bias": (24,)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)], ids=str)
def test_output_and_gradients(dtype, tolerance):
    errors = relative_errors(op.linear, lambda **given: F.linear(*given.values()), make_arguments(dtype))
    assert max(errors.values()) < tolerance, errors


@pytest.mark.parametrize("is_contiguous", [True, False])
def test_autocast_casts_each_parameter_once(is_contiguous):
    rows, weight, bias = (tensor.requires_grad_() for tensor in make_arguments(torch.float32).values())
    if not is_contiguous:
        rows = rows.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    results = []
    for run in (op.linear, F.linear):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            out = run(rows, weight, bias)
        assert {weight, bias} <= set(leaves_cast_once((out,), torch.bfloat16))
        results.append((out, *torch.autograd.grad(out.float().square().sum(), (rows, weight, bias))))
    for found, expected in zip(*results, strict=True):
        assert found.dtype == expected.dtype
        assert (found - expected).abs().max() < 1e-2 * expected.abs().max()


@pytest.mark.parametrize("trains_all", [True, False])
def test_the_output_may_be_changed_in_place(trains_all):
    """As a hook may do."""
    rows, weight, bias = make_arguments(torch.float32).values()
    for tensor in (rows, weight, bias) if trains_all else (bias,):
        tensor.requires_grad_()
    results = []
    for run in (op.linear, F.linear):
        out = run(rows, weight, bias)
        out[:, ::2] = 1
        out.mul_(3)
        inputs = [tensor for tensor in (rows, weight, bias) if tensor.requires_grad]
        results.append((out.detach(), *torch.autograd.grad(out.square().sum(), inputs)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
