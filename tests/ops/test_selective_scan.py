"""The selective scan: reference, gradients, agreement of the CPU backend with the reference, PyTorch integration."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from ops.scan_inputs import OPTIONAL, make_arguments, random_order

from zigma_pl.ops.backends import relative_errors
from zigma_pl.ops.causal_conv1d import causal_conv1d
from zigma_pl.ops.selective_scan import cpu, recurrence, reference, selective_scan
from zigma_pl.ops.threads import threads_that_pay

scan_cpu = functools.partial(selective_scan, backend="cpu")


# ------------------------------------------------------------------------------------------------------ definition
def test_reference_equals_a_loop_over_numbers():
    arguments, order = make_arguments((2, 6, 3, 2), dtype=torch.float64), random_order(6)
    a = {name: tensor.numpy() for name, tensor in arguments.items()}
    expected = np.zeros((2, 6, 3))
    for b, e in itertools.product(range(2), range(3)):
        h = np.zeros(2)
        for row in order.tolist():
            delta = math.log1p(math.exp(a["delta"][b, row, e] + a["delta_bias"][e]))
            h = np.exp(delta * a["A"][e]) * h + delta * a["B"][b, row] * a["u"][b, row, e]
            y = a["C"][b, row] @ h + a["skip"][e] * a["u"][b, row, e]
            gate = a["gate"][b, row, e]
            expected[b, row, e] = y * gate / (1 + math.exp(-gate))
    output = selective_scan(**arguments, visit_order=order, backend="reference")
    np.testing.assert_allclose(output.numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_impulse_response_is_a_decaying_exponential_along_the_path(backend):
    num_tokens, start, delta, rate = 40, 7, 0.3, -0.5
    order = random_order(num_tokens)
    u = torch.zeros(1, num_tokens, 1, dtype=torch.float64)
    u[0, order[start]] = 2.0
    ones = torch.ones(1, num_tokens, 1, dtype=torch.float64)
    A = torch.full((1, 1), rate, dtype=torch.float64)
    y = selective_scan(u, delta * ones, A, 3 * ones, 5 * ones, visit_order=order, backend=backend)
    k = torch.arange(num_tokens, dtype=torch.float64)
    expected = torch.where(k < start, 0.0, 2 * 3 * 5 * delta * torch.exp(delta * rate * (k - start)))
    torch.testing.assert_close(y[0, order.long(), 0], expected)


def test_scan_with_an_order_is_gather_then_raster_scan_then_scatter():
    arguments, order = make_arguments((2, 35, 8, 3)), random_order(35).long()
    per_token = ("u", "delta", "B", "C", "gate")
    arranged = {n: t[:, order] if n in per_token else t for n, t in arguments.items()}
    expected = torch.empty_like(arguments["u"])
    expected[:, order] = scan_cpu(**arranged)
    torch.testing.assert_close(scan_cpu(**arguments, visit_order=order.int()), expected)
    torch.testing.assert_close(scan_cpu(**arguments, visit_order=order), expected)
    torch.testing.assert_close(scan_cpu(**arguments, visit_order=torch.arange(35)), scan_cpu(**arguments))


# ------------------------------------------------------------------------------------------------------- gradients
@pytest.mark.parametrize("optional", [(), ("skip",), ("gate",), ("delta_bias",), OPTIONAL])
def test_gradcheck(optional):
    arguments = make_arguments((2, 5, 3, 2), optional, torch.float64)
    names, leaves = list(arguments), [t.requires_grad_() for t in arguments.values()]
    order = random_order(5)

    def scan(*tensors):
        return scan_cpu(**dict(zip(names, tensors, strict=True)), visit_order=order)

    assert torch.autograd.gradcheck(scan, leaves)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("shape", [(2, 1, 5, 3), (2, 63, 5, 3), (1, 63, 16, 1), (1, 1000, 4, 2)], ids=str)
def test_cpu_equals_the_float64_reference(shape, ordered):
    order = random_order(shape[1]) if ordered else None
    for optional, tolerance in ((OPTIONAL, 2e-6), ((), 2e-6)):
        arguments = make_arguments(shape, optional)
        before = {n: t.clone() for n, t in arguments.items()}
        errors = relative_errors(scan_cpu, reference.run, arguments, visit_order=order)
        assert max(errors.values()) < tolerance, errors
        assert all(torch.equal(before[n], arguments[n]) for n in before)


@pytest.mark.parametrize("num_tokens", [1, 7, 8, 9, 16, 17])
def test_every_tiling_gives_the_same_numbers(num_tokens, monkeypatch):
    # Planes of 4 x 3: blocks of 2, 2 and 1 batch rows, tiles of 8 steps.
    monkeypatch.setattr(recurrence, "STEP_ELEMENTS", 2 * 12)
    monkeypatch.setattr(recurrence, "TILE_ELEMENTS", 8 * 2 * 12)
    assert recurrence.tiling(5, num_tokens, 4, 3) == (2, min(8, num_tokens))
    arguments = make_arguments((5, num_tokens, 4, 3), dtype=torch.float64)
    for order in (None, random_order(num_tokens)):
        errors = relative_errors(scan_cpu, reference.run, arguments, visit_order=order)
        assert max(errors.values()) < 1e-13, errors


def test_strided_inputs_and_gradients():
    wide = make_arguments((3, 20, 12, 4))
    strided = {n: torch.stack([t, t], -1)[..., 0] for n, t in wide.items()}
    strided["u"] = torch.cat([wide["u"], wide["u"]], -1).chunk(2, -1)[1]
    strided["B"] = wide["B"].transpose(1, 2).contiguous().transpose(1, 2)
    assert not any(t.is_contiguous() for t in strided.values())
    order = random_order(20)
    for expand in (False, True):  # the gradient of a sum is an expanded scalar
        results = []
        for arguments in (wide, strided):
            leaves = {n: t.detach().requires_grad_() for n, t in arguments.items()}
            output = scan_cpu(**leaves, visit_order=order)
            loss = output.sum() if expand else (output.transpose(1, 2) * wide["u"].transpose(1, 2)).sum()
            results.append([output, *torch.autograd.grad(loss, list(leaves.values()))])
        for expected, tested in zip(*results, strict=True):
            torch.testing.assert_close(tested, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_inputs_are_computed_in_float32(dtype):
    arguments = make_arguments((2, 63, 8, 4), dtype=dtype)
    parameters = {n: arguments[n].float() for n in ("A", "skip", "delta_bias")}
    leaves = {n: t.requires_grad_() for n, t in {**arguments, **parameters}.items()}
    output = scan_cpu(**leaves, visit_order=random_order(63))
    output.sum().backward()
    assert output.dtype == dtype
    assert all(t.grad.dtype == t.dtype for t in leaves.values())
    # Equal to the float32 result on the same values, rounded once.
    exact = scan_cpu(**{n: t.detach().float() for n, t in leaves.items()}, visit_order=random_order(63))
    assert torch.equal(output, exact.to(dtype))


def test_nothing_is_read_before_it_is_written():
    arguments, order = make_arguments((3, 33, 6, 4)), random_order(33)
    torch.use_deterministic_algorithms(True)  # fills every fresh tensor with NaN
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        assert torch.empty(3).isnan().all()
        errors = relative_errors(scan_cpu, reference.run, arguments, visit_order=order)
    finally:
        torch.use_deterministic_algorithms(False)
    assert max(errors.values()) < 2e-6, errors


def test_two_runs_are_bit_equal():
    arguments, order = make_arguments((4, 50, 32, 8)), random_order(50)
    runs = []
    for _ in range(2):
        leaves = {n: t.detach().requires_grad_() for n, t in arguments.items()}
        output = scan_cpu(**leaves, visit_order=order)
        runs.append([output, *torch.autograd.grad(output.square().sum(), list(leaves.values()))])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_large_steps_forget_the_past_without_nan():
    arguments = make_arguments((1, 12, 4, 3), ())
    arguments["delta"] = torch.full_like(arguments["delta"], 1e4)
    assert relative_errors(scan_cpu, reference.run, arguments)["output"] < 1e-6


# ------------------------------------------------------------------------------------------- PyTorch's machinery
@pytest.mark.parametrize("optional", [(), OPTIONAL])
def test_opcheck(optional):
    arguments = make_arguments((2, 5, 3, 2), optional)
    tensors = [arguments.get(name) for name in ("u", "delta", "A", "B", "C", *OPTIONAL)]
    order = random_order(5) if optional else None
    leaves = [t if t is None else t.requires_grad_() for t in tensors]
    torch.library.opcheck(cpu.scan_forward, (*leaves, order, True))
    plain = [t if t is None else t.detach() for t in tensors]
    out, ungated, states = cpu.scan_forward(*plain, order, True)
    torch.library.opcheck(cpu.scan_backward, (torch.ones_like(out), *plain, order, ungated, states))


def test_both_ops_compile_into_one_graph():
    arguments, order = make_arguments((2, 9, 4, 3)), random_order(9)
    weight = torch.linspace(-1, 1, 16).view(4, 4)

    def mixer(weight, u, **rest):
        u = causal_conv1d(u, weight, visit_order=order)
        return selective_scan(u, **rest, visit_order=order).square().sum()

    results = []
    for run in (mixer, torch.compile(mixer, fullgraph=True)):
        leaves = {n: t.detach().requires_grad_() for n, t in {**arguments, "weight": weight}.items()}
        loss = run(**leaves)
        results.append([loss, *torch.autograd.grad(loss, list(leaves.values()))])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


def test_without_gradients_no_states_are_kept():
    arguments = list(make_arguments((2, 9, 4, 3)).values())
    _, ungated, states = cpu.scan_forward(*arguments, None, False)
    assert ungated.numel() == states.numel() == 0


def test_the_number_of_threads_is_restored_after_an_error():
    seen = []

    @threads_that_pay()
    def fail():
        seen.append(torch.get_num_threads())
        raise KeyError

    before = torch.get_num_threads()
    try:
        for num_threads in (2, 4):
            torch.set_num_threads(num_threads)
            with pytest.raises(KeyError):
                fail()
            seen.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 2, 4, 4]
