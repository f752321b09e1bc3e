"""The CUDA kernels of SSD, emulated on the CPU with small inputs."""

import functools
import itertools
import math
import shutil

import pytest
import torch
from ops.scan_inputs import random_order

from zigma_pl.core.errors import BackendUnavailable, UserError
from zigma_pl.ops.ssd import cuda, launch, layout, reference, ssd

TOLERANCES = {torch.float32: 5e-6, torch.bfloat16: 8e-3, torch.float16: 8e-3}
OPTIONAL = ("skip", "gate", "dt_bias")
SUMS = ("A", "skip", "dt_bias")  # gradients that are sums over all tokens, whose terms cancel in part

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="the emulation of CUDA needs g++, which is missing"
)
pytestmark = needs_compiler


@pytest.fixture(autouse=True)
def emulator(emulated_ssd):
    """Run the kernels on the CPU."""
    return emulated_ssd


def make_arguments(shape, dtype=torch.float32, optional=OPTIONAL, num_groups=1):
    """Return inputs for shape (B, L, H, P, N); rows are slices of wider tensors."""
    batch_size, num_tokens, num_heads, head_dim, num_states = shape
    generator = torch.Generator().manual_seed(1)
    normal = functools.partial(torch.randn, generator=generator)
    inner, terms = num_heads * head_dim, num_groups * num_states
    wide = normal(batch_size, num_tokens, 2 * inner + 2 * terms + num_heads).to(dtype)
    gate, x, B, C, dt = wide.split([inner, inner, terms, terms, num_heads], -1)
    arguments = {
        "x": x.unflatten(-1, (num_heads, head_dim)),
        "dt": dt,
        "A": -0.05 - torch.rand(num_heads, generator=generator) * torch.arange(1, num_heads + 1),
        "B": B.unflatten(-1, (num_groups, num_states)) * num_states**-0.5,
        "C": C.unflatten(-1, (num_groups, num_states)),
        "skip": normal(num_heads),
        "gate": gate.unflatten(-1, (num_heads, head_dim)),
        "dt_bias": normal(num_heads) - 1,
    }
    if "dt_bias" not in optional:
        arguments["dt"] = torch.nn.functional.softplus(dt.float() - 1).to(dtype)
    return {n: t for n, t in arguments.items() if n in optional or n not in OPTIONAL}


def results_of(run, arguments, **options):
    """Return the output and all gradients, for a gradient of the output that every dtype represents exactly."""
    leaves = {n: t.detach().requires_grad_() for n, t in arguments.items()}
    out = run(**leaves, **options)
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).mul(8).round().div(8)
    gradients = torch.autograd.grad(out, list(leaves.values()), dout.to(out.dtype))
    return {"output": out.detach(), **dict(zip(leaves, gradients, strict=True))}


def errors_of(arguments, visit_order=None, deterministic=False):
    """Return norms of the errors compared with float64, relative to the norm of each result; a quarter for sums.

    The error of a result with NaN is infinite, since max() may skip NaN.
    """
    tested = results_of(cuda.run, arguments, visit_order=visit_order, deterministic=deterministic)
    doubles = {n: t.double() for n, t in arguments.items()}
    exact = results_of(reference.run, doubles, visit_order=visit_order)
    errors = {n: float((tested[n].double() - exact[n]).norm() / exact[n].norm().clamp_min(1e-30)) for n in exact}
    errors = {n: math.inf if math.isnan(error) else error for n, error in errors.items()}
    return {n: error / 4 if n in SUMS else error for n, error in errors.items()}


def orders(batch_size, num_tokens):
    return torch.stack([random_order(num_tokens).roll(i) for i in range(batch_size)])


@pytest.mark.parametrize(
    ("dtype", "num_tokens"),
    [
        *itertools.product([torch.float32, torch.bfloat16], [1, 2, 63, 64, 65, 200]),
        *itertools.product([torch.float16], [1, 65]),
    ],
    ids=str,
)
def test_lengths(emulator, dtype, num_tokens):
    arguments = make_arguments((2, num_tokens, 3, 32, 32), dtype)
    errors = errors_of(arguments, orders(2, num_tokens))
    assert max(errors.values()) < TOLERANCES[dtype], errors
    assert emulator.launched == ["ssd_forward", "ssd_backward"]


@pytest.mark.parametrize(
    ("dtype", "head_dim", "num_states", "shared_kilobytes"),
    [
        *((torch.float32, *sizes, 227) for sizes in [(32, 16), (32, 72), (64, 128), (128, 64)]),
        *((torch.bfloat16, *sizes, 227) for sizes in [(32, 16), (32, 64), (64, 32), (64, 128), (128, 64), (32, 72)]),
        (torch.bfloat16, 64, 128, 99),
    ],
)
def test_sizes(monkeypatch, dtype, head_dim, num_states, shared_kilobytes):
    """All numbers of states, padded to 32, 64 or 128, and slices; slices in float32 do not depend on the memory."""
    monkeypatch.setattr(launch, "shared_bytes", lambda device: shared_kilobytes * 1024)
    errors = errors_of(make_arguments((1, 70, 2, head_dim, num_states), dtype), random_order(70))
    assert max(errors.values()) < TOLERANCES[dtype], errors


@pytest.mark.parametrize(
    ("dtype", "deterministic"),
    [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False), (torch.float16, True)],
    ids=str,
)
def test_groups(dtype, deterministic):
    arguments = make_arguments((2, 66, 4, 32, 16), dtype, num_groups=2)
    errors = errors_of(arguments, random_order(66), deterministic)
    assert max(errors.values()) < TOLERANCES[dtype], errors


@pytest.mark.parametrize(
    ("dtype", "optional"),
    [(torch.float32, ()), (torch.bfloat16, ()), (torch.bfloat16, ("gate",)), (torch.float32, ("skip", "dt_bias"))],
    ids=str,
)
def test_optional_inputs(optional, dtype):
    errors = errors_of(make_arguments((1, 70, 2, 32, 32), dtype, optional))
    assert max(errors.values()) < TOLERANCES[dtype], errors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_pieces", [2, 3, 4])
def test_pieces(emulator, monkeypatch, dtype, num_pieces):
    monkeypatch.setattr(launch, "pieces_for", lambda *_: num_pieces)
    arguments = make_arguments((2, 290, 2, 32, 32), dtype)
    errors = errors_of(arguments, orders(2, 290))
    assert max(errors.values()) < TOLERANCES[dtype], errors
    assert emulator.launched == ["ssd_forward_carries", "ssd_forward", "ssd_backward_carries", "ssd_backward"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("carry_parts", [2, 3])
def test_parts_of_pieces(monkeypatch, dtype, carry_parts):
    monkeypatch.setattr(launch, "pieces_for", lambda *_: 2)
    monkeypatch.setattr(launch, "carry_parts_for", lambda *_: carry_parts)
    errors = errors_of(make_arguments((2, 290, 2, 32, 32), dtype), orders(2, 290))
    assert max(errors.values()) < TOLERANCES[dtype], errors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_pieces", [1, 2])
def test_strong_decay_beside_none(monkeypatch, dtype, num_pieces):
    monkeypatch.setattr(launch, "pieces_for", lambda *_: num_pieces)
    arguments = make_arguments((1, 200, 3, 32, 32), dtype, ("skip", "gate"))
    arguments["A"] = torch.tensor([-30.0, -1.0, -1e-4])
    generator = torch.Generator().manual_seed(1)
    strong = torch.rand(1, 200, 3, generator=generator) < 0.2
    arguments["dt"] = torch.where(strong, 1.0, 1e-3).to(dtype)
    arguments["dt"][:, :, 1] *= 30
    errors = errors_of(arguments, random_order(200))
    assert max(errors.values()) < TOLERANCES[dtype], errors


def test_dt_may_be_float32_beside_16_bit_rows():
    arguments = make_arguments((1, 70, 2, 32, 32), torch.bfloat16)
    arguments["dt"] = arguments["dt"].float() + 1e-3
    errors = errors_of(arguments, random_order(70))
    assert max(errors.values()) < TOLERANCES[torch.bfloat16], errors


def test_rows_of_mixed_dtypes_are_computed_in_float32():
    arguments = make_arguments((1, 33, 2, 32, 32))
    mixed = arguments | {"x": arguments["x"].bfloat16()}
    output = cuda.run(**mixed)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, cuda.run(**mixed | {"x": mixed["x"].float()}).bfloat16())


def test_slices_are_read_in_place():
    arguments = make_arguments((2, 40, 8, 32, 32), torch.bfloat16)
    call = launch.Call(*(arguments[n] for n in ("x", "dt", "A", "B", "C", *OPTIONAL)), random_order(40))
    assert [t.data_ptr() for t in call.rows[:4]] == [arguments[n].data_ptr() for n in ("x", "B", "C", "gate")]
    contiguous = {n: t.contiguous() for n, t in arguments.items()}
    both = [results_of(cuda.run, given, deterministic=True) for given in (arguments, contiguous)]
    assert all(torch.equal(both[0][n], both[1][n]) for n in both[0])


def test_a_sample_does_not_depend_on_its_batch():
    arguments, order = make_arguments((3, 70, 2, 32, 32), torch.bfloat16), orders(3, 70)
    alone = {n: t if t.ndim == 1 else t[2:] for n, t in arguments.items()}
    assert torch.equal(cuda.run(**alone, visit_order=order[2:])[0], cuda.run(**arguments, visit_order=order)[2])


@pytest.mark.parametrize("optional", [(), OPTIONAL])
def test_opcheck(optional):
    arguments = make_arguments((1, 5, 2, 32, 16), optional=optional)
    tensors = [arguments.get(name) for name in ("x", "dt", "A", "B", "C", *OPTIONAL)]
    order = random_order(5) if optional else None
    leaves = [t if t is None else t.detach().requires_grad_() for t in tensors]
    torch.library.opcheck(cuda.ssd_forward, (*leaves, order, True, True))
    out, states = cuda.ssd_forward(*tensors, order, True, True)
    torch.library.opcheck(cuda.ssd_backward, (torch.ones_like(out), *tensors, order, states, True))


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((1, 2, 1, 48, 16), torch.float32, "heads of"),
        ((1, 2, 1, 32, 136), torch.float32, "states"),
        ((1, 2, 1, 32, 12), torch.float32, "states"),
        ((1, 2, 1, 32, 16), torch.float64, "float64"),
    ],
)
def test_what_the_kernels_lack_is_stated(shape, dtype, reason):
    with pytest.raises(UserError, match=reason):
        cuda.run(**make_arguments(shape, dtype))


def test_blocks_fit_into_shared_memory():
    for num_states, head_dim, item_bytes in itertools.product((16, 64, 128), layout.HEAD_DIMS, (2, 4)):
        for available in (99 * 1024, 163 * 1024, 227 * 1024):
            one = layout.layout_for(num_states, head_dim, item_bytes, available)
            assert max(one.forward_bytes, one.backward_bytes) <= available
            assert one.slice * one.slices == head_dim


def test_pieces_fill_the_gpu():
    assert layout.pieces_for(768, 16, 132, 3, 1) == 1
    assert layout.pieces_for(24, 64, 132, 3, 2) == 16
    assert layout.pieces_for(24, 3, 132, 3, 1) == 3
    assert layout.pieces_for(24, 3, 132, 3, 2) == 1


def test_parts_fill_the_gpu_if_one_of_two_pieces_needs_them():
    assert layout.carry_parts_for(1, 64) == 1
    assert layout.carry_parts_for(2, 32) == 2
    assert layout.carry_parts_for(2, 3) == 1  # too short
    assert layout.carry_parts_for(3, 32) == 1


def test_the_op_refuses_the_kernels_without_a_gpu():
    with pytest.raises(BackendUnavailable):
        ssd(**make_arguments((1, 2, 1, 32, 16)), backend="cuda")
