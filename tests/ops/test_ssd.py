"""SSD: reference, gradients, agreement of the CPU backend with the reference, PyTorch integration, mamba-ssm."""

import functools
import itertools
import math
import sys
import types

import numpy as np
import pytest
import torch
from ops.ssd_inputs import OPTIONAL, make_arguments, random_order, random_orders
from torch.nn import functional as F

from zigma_pl.core.errors import BackendUnavailable, UserError
from zigma_pl.ops import ssd as ssd_module
from zigma_pl.ops.backends import relative_errors
from zigma_pl.ops.ssd import chunks, cpu, mamba_ssm, reference, ssd
from zigma_pl.scan.paths import visit_order as zigzag

ssd_cpu = functools.partial(ssd, backend="cpu")
LENGTHS = (1, 2, 63, 64, 65, 1000)


def check(arguments, bound, order=None):
    errors = relative_errors(ssd_cpu, reference.run, arguments, visit_order=order)
    assert max(errors.values()) < bound, errors


# ------------------------------------------------------------------------------------------------------ definition
def test_reference_equals_a_loop_over_numbers():
    arguments, order = make_arguments(5, heads=(4, 3), groups=(2, 2), dtype=torch.float64), random_order(5)
    a = {name: tensor.numpy() for name, tensor in arguments.items()}
    expected = np.zeros((2, 5, 4, 3))
    for b, head, p in itertools.product(range(2), range(4), range(3)):
        h, group = np.zeros(2), head // 2
        for row in order.tolist():
            step = math.log1p(math.exp(a["dt"][b, row, head] + a["dt_bias"][head]))
            x, gate = a["x"][b, row, head, p], a["gate"][b, row, head, p]
            h = np.exp(step * a["A"][head]) * h + step * a["B"][b, row, group] * x
            y = a["C"][b, row, group] @ h + a["skip"][head] * x
            expected[b, row, head, p] = y * gate / (1 + math.exp(-gate))
    output = ssd(**arguments, visit_order=order, backend="reference")
    np.testing.assert_allclose(output.numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_scan_with_orders_is_gather_then_raster_scan_then_scatter(backend):
    arguments, orders = make_arguments(70), random_orders(70).long()
    per_token = ("x", "dt", "B", "C", "gate")
    arranged = {
        n: torch.stack([sample[order] for sample, order in zip(t, orders, strict=True)]) if n in per_token else t
        for n, t in arguments.items()
    }
    expected = torch.empty_like(arguments["x"])
    scanned = ssd(**arranged, backend=backend)
    for sample, order in enumerate(orders):
        expected[sample, order] = scanned[sample]
    torch.testing.assert_close(ssd(**arguments, visit_order=orders.int(), backend=backend), expected)
    one_order = ssd(**arguments, visit_order=orders[0], backend=backend)
    torch.testing.assert_close(one_order[0], expected[0])


# ------------------------------------------------------------------------------------------------- the CPU backend
@pytest.mark.parametrize("optional", [(), ("skip",), ("gate",), ("dt_bias",), OPTIONAL])
def test_gradcheck(optional, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 4)
    arguments = make_arguments(6, heads=(2, 2), groups=(1, 2), optional=optional, dtype=torch.float64)
    names, leaves, order = list(arguments), [t.requires_grad_() for t in arguments.values()], random_order(6)
    assert torch.autograd.gradcheck(
        lambda *tensors: ssd_cpu(**dict(zip(names, tensors, strict=True)), visit_order=order), leaves
    )


@pytest.mark.parametrize("num_tokens", LENGTHS)
@pytest.mark.parametrize("ordered", ["raster", "random", "per sample"])
def test_cpu_equals_the_reference_in_float64_and_float32(num_tokens, ordered):
    orders = {"raster": None, "random": random_order(num_tokens), "per sample": random_orders(num_tokens)}
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 3e-6)):
        arguments = make_arguments(num_tokens, heads=(4, 3), groups=(2, 2), dtype=dtype)
        before = {n: t.clone() for n, t in arguments.items()}
        check(arguments, bound, orders[ordered])
        assert all(torch.equal(before[n], arguments[n]) for n in before)


@pytest.mark.parametrize(("heads", "groups"), [((1, 1), (1, 1)), ((3, 5), (1, 7)), ((4, 2), (4, 3)), ((6, 2), (2, 16))])
def test_heads_and_groups_along_zigzags(heads, groups):
    for index in (0, 3):
        order = torch.as_tensor(zigzag("zigzag", 10, 10, index=index)).int()
        arguments = make_arguments(100, heads=heads, groups=groups, optional=("skip",), dtype=torch.float64)
        check(arguments, 1e-12, order)


@pytest.mark.parametrize("num_tokens", [1, 7, 8, 9, 16, 17, 40])
def test_every_tiling_gives_the_same_numbers(num_tokens, monkeypatch):
    """Chunks of at most 4 tokens, tiles of one or two chunks or samples."""
    monkeypatch.setattr(chunks, "CHUNK", 4)
    arguments = make_arguments(num_tokens, batch_size=5, dtype=torch.float64)
    for num_chunks in (1, 2, 5):
        monkeypatch.setattr(chunks, "TILE_ELEMENTS", num_chunks * 4 * 16)
        check(arguments, 1e-12)
        check(arguments, 1e-12, random_order(num_tokens))


def strong_decay(num_tokens, dtype):
    """Log decays of -30 beside 0, in the same head."""
    arguments = make_arguments(num_tokens, optional=("skip", "gate"), dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    steps = torch.tensor([0.0, 1e-6, 1e-2, 0.3, 30.0], dtype=torch.float64)
    arguments["A"] = torch.tensor([-1.0, -1.0, -0.5, -1e-3], dtype=dtype)
    arguments["dt"] = steps[torch.randint(5, arguments["dt"].shape, generator=generator)].to(dtype)
    return arguments


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 3e-6)])
def test_strong_decay_beside_none_is_exact(dtype, bound):
    check(strong_decay(200, dtype), bound, random_order(200))


def test_gradients_of_decay_do_not_drown_in_those_of_other_tokens():
    """All that a token passes on decays by exp(-20), so dA is tiny beside the sums over rows that would cancel."""
    arguments = make_arguments(130, optional=())
    arguments["A"], arguments["dt"] = torch.full((4,), -1.0), torch.full((2, 130, 4), 20.0)
    check(arguments, 1e-5)


def test_huge_steps_forget_the_past_without_nan():
    arguments = make_arguments(130, optional=())
    arguments["dt"] = torch.full_like(arguments["dt"], 1e30)
    check(arguments, 3e-6)


def test_a_sample_alone_equals_itself_in_the_batch():
    arguments = make_arguments(100, batch_size=7)
    alone = {n: t[-1:] if t.ndim > 1 else t for n, t in arguments.items()}
    torch.testing.assert_close(ssd_cpu(**arguments)[-1:], ssd_cpu(**alone), rtol=1e-6, atol=1e-6)


def test_strided_inputs_and_gradients():
    wide = make_arguments(70)
    projected = torch.cat([wide[n].flatten(2) for n in ("gate", "x", "B", "C", "dt")], -1)
    parts = projected.split([32, 32, 12, 12, 4], -1)
    strided = dict(zip(("gate", "x", "B", "C", "dt"), parts, strict=True))
    strided = {n: t.view(wide[n].shape) for n, t in strided.items()}
    strided |= {n: torch.stack([wide[n]] * 2, -1)[..., 0] for n in ("A", "skip", "dt_bias")}
    assert not any(t.is_contiguous() for t in strided.values())
    for order in (None, random_order(70), random_orders(70)):
        for expand in (False, True):  # the gradient of a sum is an expanded scalar
            results = []
            for arguments in (wide, strided):
                leaves = {n: arguments[n].detach().requires_grad_() for n in wide}
                output = ssd_cpu(**leaves, visit_order=order)
                loss = output.sum() if expand else (output.transpose(1, 2) * wide["x"].transpose(1, 2)).sum()
                results.append([output, *torch.autograd.grad(loss, list(leaves.values()))])
            for expected, tested in zip(*results, strict=True):
                torch.testing.assert_close(tested, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_inputs_are_computed_in_float32(dtype):
    arguments = make_arguments(70, dtype=dtype)
    parameters = {n: arguments[n].float() for n in ("A", "skip", "dt_bias")}
    leaves = {n: t.requires_grad_() for n, t in {**arguments, **parameters}.items()}
    output = ssd_cpu(**leaves, visit_order=random_order(70))
    output.sum().backward()
    assert output.dtype == dtype
    assert all(t.grad.dtype == t.dtype for t in leaves.values())
    exact = ssd_cpu(**{n: t.detach().float() for n, t in leaves.items()}, visit_order=random_order(70))
    assert torch.equal(output, exact.to(dtype))  # rounded once


def test_nothing_is_read_before_it_is_written():
    torch.use_deterministic_algorithms(True)  # fills every fresh tensor with NaN
    try:
        assert torch.empty(3).isnan().all()
        check(make_arguments(65), 3e-6, random_order(65))
    finally:
        torch.use_deterministic_algorithms(False)


def test_two_runs_are_bit_equal():
    arguments, order = make_arguments(130), random_order(130)
    runs = []
    for _ in range(2):
        leaves = {n: t.detach().requires_grad_() for n, t in arguments.items()}
        output = ssd_cpu(**leaves, visit_order=order, deterministic=True)
        runs.append([output, *torch.autograd.grad(output.square().sum(), list(leaves.values()))])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


# ------------------------------------------------------------------------------------------- PyTorch's machinery
@pytest.mark.parametrize("optional", [(), OPTIONAL])
@pytest.mark.parametrize("num_tokens", [5, 70])
def test_opcheck(optional, num_tokens):
    arguments = make_arguments(num_tokens, optional=optional)
    tensors = [arguments.get(name) for name in ("x", "dt", "A", "B", "C", *OPTIONAL)]
    order = random_order(num_tokens) if optional else None
    leaves = [t if t is None else t.requires_grad_() for t in tensors]
    torch.library.opcheck(cpu.ssd_forward, (*leaves, order, True))
    plain = [t if t is None else t.detach() for t in tensors]
    out, ungated, states = cpu.ssd_forward(*plain, order, True)
    torch.library.opcheck(cpu.ssd_backward, (torch.ones_like(out), *plain, order, ungated, states))


def test_without_gradients_no_states_are_kept():
    arguments = list(make_arguments(130).values())
    _, ungated, states = cpu.ssd_forward(*arguments, None, False)
    assert ungated.numel() == states.numel() == 0
    _, ungated, states = cpu.ssd_forward(*arguments, None, True)
    assert ungated.shape == arguments[0].shape
    assert states.shape == (2, 4, 3, 6, 8)


@pytest.mark.parametrize("order", [random_order(9), random_orders(9)], ids=["order", "orders"])
def test_the_op_compiles_into_one_graph(order):
    arguments = make_arguments(9)
    results = []
    for run in (ssd, torch.compile(ssd, fullgraph=True, backend="aot_eager")):
        leaves = {n: t.detach().requires_grad_() for n, t in arguments.items()}
        output = run(**leaves, visit_order=order)
        results.append([output, *torch.autograd.grad(output.square().sum(), list(leaves.values()))])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


# ---------------------------------------------------------------------------------------------- backends and errors
def mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, dt_softplus=False):
    """A fake of mamba-ssm's function, with its argument names; one dtype for rows, float32 parameters."""
    assert {t.dtype for t in (B, C, z) if t is not None} <= {x.dtype}
    assert {t.dtype for t in (A, D, dt_bias) if t is not None} == {torch.float32}
    assert chunk_size & (chunk_size - 1) == 0
    y = reference.run(*(t.float() for t in (x, dt, A, B, C)), D, dt_bias=dt_bias if dt_softplus else None)
    return (y if z is None else y * F.silu(z.float())).to(x.dtype)


@pytest.fixture
def fake_mamba_ssm(monkeypatch):
    kernels = types.ModuleType("mamba_ssm.ops.triton.ssd_combined")
    kernels.mamba_chunk_scan_combined = mamba_chunk_scan_combined
    monkeypatch.setitem(sys.modules, kernels.__name__, kernels)


@pytest.mark.usefixtures("fake_mamba_ssm")
@pytest.mark.parametrize("optional", [(), OPTIONAL])
@pytest.mark.parametrize("order", [None, random_order(13), random_orders(13)], ids=["raster", "order", "orders"])
def test_mamba_ssm_gets_its_arguments_in_visit_order(optional, order):
    arguments = make_arguments(13, optional=optional)
    errors = relative_errors(mamba_ssm.run, reference.run, arguments, visit_order=order)
    assert max(errors.values()) < 3e-6, errors
    mixed = {n: t.bfloat16() if n == "x" else t for n, t in arguments.items()}
    assert mamba_ssm.run(**mixed, visit_order=order).dtype == torch.bfloat16


@pytest.mark.usefixtures("fake_mamba_ssm")
def test_mamba_ssm_has_no_float64_and_needs_cuda(monkeypatch):
    with pytest.raises(UserError, match="float64"):
        mamba_ssm.run(**make_arguments(2, dtype=torch.float64))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not mamba_ssm.available()[0]


def test_mamba_ssm_is_not_deterministic(monkeypatch):
    monkeypatch.setattr(ssd_module, "_choose_backend", lambda name, device_type: name)
    with pytest.raises(UserError, match="deterministic"):
        ssd(**make_arguments(3), backend="mamba_ssm", deterministic=True)


def test_self_checks():
    assert ssd_module.self_check("cpu") < 1e-5
    assert ssd_module.self_check("reference") < 1e-5


@pytest.mark.parametrize(
    "changed",
    [
        {"x": torch.zeros(2, 3, 4)},
        {"x": torch.zeros(2, 0, 4, 8)},
        {"dt": torch.zeros(2, 3, 5)},
        {"A": torch.zeros(4, 1)},
        {"B": torch.zeros(2, 3, 3, 6)},  # 3 groups of 4 heads
        {"B": torch.zeros(2, 3, 0, 6)},
        {"B": torch.zeros(2, 3, 6)},
        {"C": torch.zeros(2, 3, 2, 5)},
        {"skip": torch.zeros(4, 8)},
        {"gate": torch.zeros(2, 3, 32)},
        {"dt_bias": torch.zeros(4, dtype=torch.int32)},
        {"visit_order": torch.arange(4)},
        {"visit_order": torch.arange(3).expand(3, 3)},
        {"visit_order": torch.arange(3).float()},
        {"backend": "cubic"},
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(changed):
    with pytest.raises(UserError):
        ssd(**(make_arguments(3) | changed))


def test_a_named_backend_does_not_fall_back():
    with pytest.raises(BackendUnavailable):
        ssd(**make_arguments(3), backend="mamba_ssm")
