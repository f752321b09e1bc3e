"""The causal convolution: definition, gradients, agreement of the backends, errors."""

import functools
import itertools
import sys
import types

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from zigma_pl.core.errors import BackendUnavailable, UserError
from zigma_pl.ops import causal_conv1d as conv
from zigma_pl.ops.backends import relative_errors
from zigma_pl.ops.causal_conv1d import causal_conv1d

conv_cpu = functools.partial(causal_conv1d, backend="cpu")
conv_reference = functools.partial(causal_conv1d, backend="reference")


def make_arguments(num_rows, num_tokens, num_channels, num_taps, bias=True, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (num_rows, num_tokens, num_channels), "weight": (num_channels, num_taps), "bias": (num_channels,)}
    arguments = {n: torch.randn(*s, generator=generator, dtype=torch.float64).to(dtype) for n, s in shapes.items()}
    return arguments if bias else {n: arguments[n] for n in ("x", "weight")}


def random_order(num_tokens):
    return torch.randperm(num_tokens, generator=torch.Generator().manual_seed(1)).int()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_equals_a_loop_over_numbers(backend):
    arguments, order = make_arguments(2, 7, 3, 4, dtype=torch.float64), random_order(7)
    x, weight, bias = (tensor.numpy() for tensor in arguments.values())
    path = order.tolist()
    expected = np.zeros_like(x)
    for k, j in itertools.product(range(7), range(4)):
        if k - 3 + j >= 0:
            expected[:, path[k]] += weight[:, j] * x[:, path[k - 3 + j]]
    expected += bias
    linear = causal_conv1d(**arguments, visit_order=order, activation=None, backend=backend)
    np.testing.assert_allclose(linear.numpy(), expected, rtol=1e-12, atol=1e-14)
    silu = causal_conv1d(**arguments, visit_order=order, backend=backend)
    np.testing.assert_allclose(silu.numpy(), expected / (1 + np.exp(-expected)), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("activation", ["silu", None])
@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck(bias, activation):
    arguments, order = make_arguments(2, 6, 3, 4, bias, torch.float64), random_order(6)
    leaves = [t.requires_grad_() for t in arguments.values()]
    assert torch.autograd.gradcheck(lambda *t: conv_cpu(*t, visit_order=order, activation=activation), leaves)


@pytest.mark.parametrize("shape", [(2, 1, 5, 4), (1, 63, 16, 4), (3, 2, 8, 5), (2, 1000, 3, 1)], ids=str)
@pytest.mark.parametrize("ordered", [True, False])
def test_cpu_equals_the_float64_reference(shape, ordered):
    order = random_order(shape[1]) if ordered else None
    for bias, activation in itertools.product((True, False), ("silu", None)):
        arguments = make_arguments(*shape, bias=bias)
        before = {n: t.clone() for n, t in arguments.items()}
        errors = relative_errors(conv_cpu, conv_reference, arguments, visit_order=order, activation=activation)
        assert max(errors.values()) < 2e-6, errors
        assert all(torch.equal(before[n], arguments[n]) for n in before)


def test_blocks_of_batch_rows_and_unwritten_memory(monkeypatch):
    monkeypatch.setattr(conv, "BLOCK_ELEMENTS", 2 * 9 * 4)  # blocks of 2, 2 and 1 batch rows
    arguments, order = make_arguments(5, 9, 4, 4, dtype=torch.float64), random_order(9)
    torch.use_deterministic_algorithms(True)  # fills every fresh tensor with NaN
    try:
        errors = relative_errors(conv_cpu, conv_reference, arguments, visit_order=order)
    finally:
        torch.use_deterministic_algorithms(False)
    assert max(errors.values()) < 1e-13, errors


def test_strided_and_16_bit_inputs():
    arguments, order = make_arguments(2, 20, 8, 4), random_order(20)
    strided = {n: torch.stack([t, t], -1)[..., 0] for n, t in arguments.items()}
    strided["x"] = torch.cat([arguments["x"]] * 2, -1).chunk(2, -1)[1]
    results = []
    for given in (arguments, strided):
        leaves = [t.detach().requires_grad_() for t in given.values()]
        results.append(torch.autograd.grad(conv_cpu(*leaves, visit_order=order).sum(), leaves))
    for expected, tested in zip(*results, strict=True):
        torch.testing.assert_close(tested, expected)
    x = arguments["x"].bfloat16().requires_grad_()
    output = conv_cpu(x, arguments["weight"], arguments["bias"], visit_order=order)
    output.sum().backward()
    assert output.dtype == x.grad.dtype == torch.bfloat16
    exact = conv_cpu(x.detach().float(), arguments["weight"], arguments["bias"], visit_order=order)
    assert torch.equal(output, exact.bfloat16())


def test_two_runs_are_bit_equal():
    arguments, order = make_arguments(4, 50, 32, 4), random_order(50)
    runs = []
    for _ in range(2):
        leaves = [t.detach().requires_grad_() for t in arguments.values()]
        output = conv_cpu(*leaves, visit_order=order)
        runs.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


@pytest.mark.parametrize("bias", [True, False])
def test_opcheck(bias):
    arguments = list(make_arguments(2, 5, 3, 4, bias).values())
    plain = (*arguments, *([] if bias else [None]), random_order(5) if bias else None, True)
    leaves = (*(t.detach().requires_grad_() for t in arguments), *plain[len(arguments) :])
    torch.library.opcheck(conv.conv_forward, leaves)
    torch.library.opcheck(conv.conv_backward, (torch.ones(2, 5, 3), *plain))


# --------------------------------------------------------------------------------------- the package causal-conv1d
def channel_first_convolution(x, weight, bias=None, activation=None):
    """A fake of the package: takes (B, E, L) in one dtype, and channel-last rows with multiples of 8 channels."""
    assert weight.dtype == x.dtype
    assert x.stride(2) == 1 or x.shape[1] % 8 == 0
    padded = F.pad(x, (weight.shape[1] - 1, 0))
    out = F.conv1d(padded, weight[:, None], bias, groups=len(weight))
    return F.silu(out) if activation == "silu" else out


@pytest.fixture
def package_stand_in(monkeypatch):
    interface = types.ModuleType("causal_conv1d.causal_conv1d_interface")
    interface.causal_conv1d_fn = channel_first_convolution
    monkeypatch.setitem(sys.modules, interface.__name__, interface)


@pytest.mark.usefixtures("package_stand_in")
@pytest.mark.parametrize("num_channels", [8, 5])
@pytest.mark.parametrize("ordered", [True, False])
def test_the_package_gets_its_layout_and_returns_ours(num_channels, ordered):
    order = random_order(13) if ordered else None
    for bias, activation in ((True, "silu"), (False, None)):
        arguments = make_arguments(2, 13, num_channels, 4, bias)

        def run(x, weight, bias=None, activation=activation):
            return conv._run_package(x, weight, bias, order, activation)

        exact = functools.partial(conv_reference, visit_order=order, activation=activation)
        errors = relative_errors(run, exact, arguments)
        assert max(errors.values()) < 2e-6, errors


@pytest.mark.usefixtures("package_stand_in")
def test_the_package_states_what_it_lacks(monkeypatch):
    x = torch.zeros(1, 4, 8)
    with pytest.raises(UserError, match="takes 2 to 4 taps and no float64, got 5 taps"):
        conv._run_package(x, torch.zeros(8, 5), None, None, "silu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert conv.available_backends()["causal_conv1d"].reason == "PyTorch sees no CUDA device"
    monkeypatch.setitem(sys.modules, "causal_conv1d.causal_conv1d_interface", None)  # importing it raises ImportError
    assert "pip install" in conv.available_backends()["causal_conv1d"].reason


# ------------------------------------------------------------------------------------------- backends and errors
def test_self_check():
    assert 0 < conv.self_check("cpu") < 1e-5
    assert 0 < conv.self_check("reference") < 1e-5
    with pytest.raises(BackendUnavailable, match="causal_conv1d"):
        causal_conv1d(torch.zeros(1, 2, 3), torch.zeros(3, 4), backend="causal_conv1d")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 5)}, r"x must be \(B, L, E\) without empty axes"),
        ({"weight": torch.zeros(4, 4)}, r"weight must be \(E, K\) = \(3, 4\)"),
        ({"weight": torch.zeros(3, 0)}, r"weight must be \(E, K\)"),
        ({"weight": torch.zeros(())}, r"weight must be \(E, K\)"),
        ({"bias": torch.zeros(3, dtype=torch.int64)}, "bias must be real floating point"),
        ({"bias": torch.zeros(2)}, r"bias must be \(E,\) = \(3,\), got \(2,\)"),
        ({"visit_order": torch.arange(4)}, r"visit_order must be \(L,\) = \(5,\), got \(4,\)"),
        ({"activation": "relu"}, "activation 'relu' does not exist; choose 'silu' or None"),
        ({"backend": "gpu"}, "backend 'gpu' does not exist"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(UserError, match=message):
        causal_conv1d(**{**make_arguments(2, 5, 3, 4), **change})
