"""The CUDA kernels of SSD, emulated on the CPU with small inputs."""

import functools
import shutil

import pytest
import torch
from ops.cuda_emulation import Emulator
from ops.scan_inputs import random_order

from zigma_pl.core.errors import UserError
from zigma_pl.ops import nvrtc
from zigma_pl.ops.ssd import cuda, launch, layout, reference

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-2}  # float16 rows become bfloat16
OPTIONAL = ("skip", "gate", "dt_bias")
SUMS = ("A", "skip", "dt_bias")  # gradients that are sums over all tokens, whose terms cancel in part

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="the emulation of CUDA needs g++, which is missing"
)
pytestmark = needs_compiler


@pytest.fixture(autouse=True)
def emulator(kernel_folder, monkeypatch):
    """Run the kernels on the CPU, with NaN in new tensors and shared memory, and one piece per sequence."""
    emulator = Emulator(kernel_folder)
    launch.kernel.cache_clear()
    monkeypatch.setattr(nvrtc, "load", emulator.load)
    monkeypatch.setattr(launch, "shared_bytes", lambda device: 227 * 1024)
    monkeypatch.setattr(launch, "num_multiprocessors", lambda device: 1)
    torch.use_deterministic_algorithms(True)
    yield emulator
    torch.use_deterministic_algorithms(False)
    launch.kernel.cache_clear()


def make_arguments(shape, dtype=torch.float32, optional=OPTIONAL, num_groups=1):
    """Return inputs for shape (B, L, H, P, N); rows are slices of wider tensors."""
    batch_size, num_tokens, num_heads, head_dim, num_states = shape
    generator = torch.Generator().manual_seed(0)
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
    """Return norms of the errors compared with float64, relative to the norm of each result; a quarter for sums."""
    tested = results_of(cuda.run, arguments, visit_order=visit_order, deterministic=deterministic)
    doubles = {n: t.double() for n, t in arguments.items()}
    exact = results_of(reference.run, doubles, visit_order=visit_order)
    errors = {n: float((tested[n].double() - exact[n]).norm() / exact[n].norm().clamp_min(1e-30)) for n in exact}
    return {n: error / 4 if n in SUMS else error for n, error in errors.items()}


def orders(batch_size, num_tokens):
    return torch.stack([random_order(num_tokens).roll(i) for i in range(batch_size)])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 2, 63, 64, 65, 200])
def test_lengths(emulator, dtype, num_tokens):
    arguments = make_arguments((2, num_tokens, 3, 32, 32), dtype)
    errors = errors_of(arguments, orders(2, num_tokens))
    assert max(errors.values()) < TOLERANCES[dtype], errors
    assert emulator.launched == ["ssd_forward", "ssd_backward"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("head_dim", "num_states"), [(32, 16), (32, 64), (64, 32), (64, 64), (64, 128), (128, 64), (32, 72)]
)
@pytest.mark.parametrize("roomy", [False, True])
def test_sizes(monkeypatch, dtype, head_dim, num_states, roomy):
    if roomy or num_states > 64:
        monkeypatch.setattr(launch, "shared_bytes", lambda device: (227 if roomy else 99) * 1024)
    elif not roomy:
        pytest.skip("the same layout")
    errors = errors_of(make_arguments((1, 70, 2, head_dim, num_states), dtype), random_order(70))
    assert max(errors.values()) < TOLERANCES[dtype], errors


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("deterministic", [False, True])
def test_groups(dtype, deterministic):
    arguments = make_arguments((2, 66, 4, 32, 16), dtype, num_groups=2)
    errors = errors_of(arguments, random_order(66), deterministic)
    assert max(errors.values()) < TOLERANCES[dtype], errors


@pytest.mark.parametrize("optional", [(), ("gate",), ("skip", "dt_bias")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
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
