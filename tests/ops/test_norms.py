"""Residual sum, norm and modulation: emulated CUDA kernels, compared with plain PyTorch in float64."""

import itertools
import shutil

import pytest
import torch

from zigma_pl.ops import norms, norms_cuda
from zigma_pl.ops.backends import relative_errors
from zigma_pl.ops.norms_cuda import IN_PLACE, Inverses
from zigma_pl.ops.rows import UnscaledRows, inverse_order, take_rows

TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
NAMES = ("x", "branch", "gate", "weight", "shift", "scale")

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="the emulation of CUDA needs g++, which is missing"
)


def make_arguments(shape, dtype, stream=torch.float32, absent=()):
    """Arguments as in a block: gate, shift and scale are slices of one tensor."""
    generator = torch.Generator().manual_seed(0)
    num_batch, _, width = shape
    gate, shift, scale = torch.randn(num_batch, 1, 3 * width, generator=generator).to(dtype).chunk(3, -1)
    arguments = {
        "x": (torch.randn(shape, generator=generator) * 2 + 0.7).to(stream),
        "branch": torch.randn(shape, generator=generator).to(dtype),
        "gate": gate,
        "weight": torch.rand(width, generator=generator) + 0.5,
        "shift": shift,
        "scale": scale,
    }
    return {name: tensor for name, tensor in arguments.items() if name not in absent}


def together(results):
    """Both results as one tensor, so that errors are found in both."""
    return torch.cat([results[0], results[1].to(results[0].dtype)], -1)


def unscaled(dtype, num_parts, num_tokens=13, width=24):
    """Arguments whose branch is `UnscaledRows`, as in a block: the rows are as large as their factors are small."""
    arguments = make_arguments((2, num_tokens, width), dtype)
    generator = torch.Generator().manual_seed(5)
    sizes = torch.rand(2, num_tokens, 1, generator=generator) * 30 + 0.1
    parts = torch.rand(2, num_tokens, num_parts, generator=generator)
    arguments["branch"] = (arguments["branch"] * sizes).to(dtype)
    return arguments | {"mean_squares": sizes.square() * parts / parts.sum(-1, keepdim=True)}


def run_kernels(centred, inverses=IN_PLACE, **given):
    tensors = [given.get(name) for name in NAMES]
    if "mean_squares" in given:
        tensors[1] = UnscaledRows(tensors[1], given["mean_squares"], 0.1)
    branch, out = inverses
    options = {"branch_inverse": branch, "out_inverse": out}
    return together(norms.add_norm_modulate(*tensors, epsilon=1e-5, centred=centred, **options))


def run_plain(centred, inverses=IN_PLACE, **given):
    if "mean_squares" in given:
        given["branch"] = given["branch"] * (given["mean_squares"].sum(-1, keepdim=True) + 0.1) ** -0.5
    return together(norms._run_reference(*map(given.get, NAMES), inverses, 1e-5, centred))


def random_inverses(num_tokens, of_branch, of_out):
    """Inverses of random orders, one for all samples (1) or for each of two (2), None for 0."""
    generator = torch.Generator().manual_seed(3)
    orders = [torch.randperm(num_tokens, generator=generator) for _ in range(3)]
    return Inverses(*({0: None, 1: orders[0], 2: torch.stack(orders[1:])}[number] for number in (of_branch, of_out)))


@pytest.fixture
def fused(emulated, monkeypatch):
    """Use the CUDA implementation for CPU tensors."""
    monkeypatch.setattr(norms, "runs_fused", lambda x, shift: True)
    monkeypatch.setattr(norms_cuda, "FORWARD_BLOCKS", 2)  # so that a warp processes several rows


@needs_compiler
@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("width", [24, 264])
def test_output_and_gradients(dtype, centred, width):
    arguments = make_arguments((2, 13, width), dtype)
    errors = relative_errors(run_kernels, run_plain, arguments, centred=centred)
    assert max(errors.values()) < TOLERANCES[dtype], errors


@needs_compiler
@pytest.mark.usefixtures("fused")
def test_gradients_of_many_chunks(monkeypatch):
    monkeypatch.setattr(norms_cuda, "BACKWARD_LONGEST", 4)  # 19 chunks, more than are added up side by side
    errors = relative_errors(run_kernels, run_plain, make_arguments((2, 75, 16), torch.float32), centred=False)
    assert max(errors.values()) < TOLERANCES[torch.float32], errors


@needs_compiler
@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("absent", [("branch", "gate"), ("weight",)])
def test_without_branch_or_weight(absent):
    arguments = make_arguments((2, 5, 16), torch.float32, absent=absent)
    errors = relative_errors(run_kernels, run_plain, arguments, centred=False)
    assert max(errors.values()) < TOLERANCES[torch.float32], errors


@needs_compiler
@pytest.mark.usefixtures("fused")
def test_residual_stream_of_16_bits():
    arguments = make_arguments((2, 5, 16), torch.bfloat16, stream=torch.bfloat16)
    errors = relative_errors(run_kernels, run_plain, arguments, centred=False)
    assert max(errors.values()) < 2e-2, errors


@needs_compiler
@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(("num_parts", "centred"), [(1, False), (24, True), (70, False)])
def test_rows_of_the_branch_are_scaled(num_parts, centred, dtype):
    arguments, inverses = unscaled(dtype, num_parts), random_inverses(13, 2, 1)
    errors = relative_errors(run_kernels, run_plain, arguments, centred=centred, inverses=inverses)
    assert max(errors.values()) < TOLERANCES[dtype], errors


def test_rows_of_the_branch_are_scaled_in_plain_pytorch():
    arguments, inverses = unscaled(torch.float32, 3), random_inverses(13, 1, 0)
    errors = relative_errors(run_kernels, run_plain, arguments, centred=False, inverses=inverses)
    assert max(errors.values()) < TOLERANCES[torch.float32], errors


@needs_compiler
@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("used", [0, 1])
def test_either_result_may_go_unused(used):
    leaves = {name: t.detach().requires_grad_() for name, t in make_arguments((2, 5, 16), torch.float32).items()}
    inputs = list(leaves.values())[: 3 if used == 0 else 6]
    found, expected = (
        torch.autograd.grad(run(True, **leaves).chunk(2, -1)[used].square().sum(), inputs)
        for run in (run_kernels, run_plain)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@needs_compiler
@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("arguments", [make_arguments((2, 5, 16), torch.bfloat16), unscaled(torch.bfloat16, 3)])
def test_all_ways_give_the_same_bits(arguments, monkeypatch):
    results = []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda value=compiling: value)
        leaves = {name: t.detach().requires_grad_() for name, t in arguments.items()}
        output = run_kernels(False, **leaves)
        results.append([output, *torch.autograd.grad(output.square().sum(), list(leaves.values()))])
        with torch.no_grad():
            assert torch.equal(run_kernels(False, **arguments), output)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


ORDERS = [(0, 1), (1, 0), (1, 1), (2, 2)]  # of branch and out, as `random_inverses` takes them


@pytest.mark.parametrize("orders", ORDERS)
def test_rows_are_read_and_written_in_visit_order(orders):
    """Plain PyTorch, compared with rows that are permuted before and after."""
    arguments, inverses = make_arguments((2, 13, 24), torch.float32), random_inverses(13, *orders)
    given = [arguments[name] for name in NAMES]
    given[1] = given[1] if inverses.branch is None else take_rows(given[1], inverses.branch)
    x_new, out = norms.add_norm_modulate(*given, epsilon=1e-5)
    expected = out if inverses.out is None else take_rows(out, inverse_order(inverses.out))
    found = norms.add_norm_modulate(
        *arguments.values(), epsilon=1e-5, branch_inverse=inverses.branch, out_inverse=inverses.out
    )
    for one, other in zip(found, (x_new, expected), strict=True):
        assert torch.equal(one, other)


@needs_compiler
@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize(("orders", "dtype"), [*((o, torch.float32) for o in ORDERS), ((2, 1), torch.bfloat16)])
def test_kernels_read_and_write_rows_in_visit_order(orders, dtype):
    arguments, inverses = make_arguments((2, 13, 24), dtype), random_inverses(13, *orders)
    errors = relative_errors(run_kernels, run_plain, arguments, centred=False, inverses=inverses)
    assert max(errors.values()) < TOLERANCES[dtype], errors


@needs_compiler
@pytest.mark.usefixtures("fused")
def test_all_ways_move_rows_alike(monkeypatch):
    arguments, inverses, results = make_arguments((2, 5, 16), torch.float32), random_inverses(5, 1, 2), []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda value=compiling: value)
        leaves = {name: t.detach().requires_grad_() for name, t in arguments.items()}
        output = run_kernels(False, inverses, **leaves)
        results.append([output, *torch.autograd.grad(output.square().sum(), list(leaves.values()))])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("orders", [(0, 0), *ORDERS])
@pytest.mark.parametrize("num_tokens", [1, 63, 1000])
def test_norms_on_the_gpu(num_tokens, orders, dtype):
    inverses = Inverses(*(t if t is None else t.cuda() for t in random_inverses(num_tokens, *orders)))
    given = make_arguments((2, num_tokens, 768), dtype), unscaled(dtype, 24, num_tokens, 768)
    for arguments, centred in itertools.product(given, (False, True)):
        arguments = {name: t.cuda() for name, t in arguments.items()}
        errors = relative_errors(run_kernels, run_plain, arguments, centred=centred, inverses=inverses)
        assert max(errors.values()) < max(TOLERANCES[dtype], 1e-5), errors


@needs_compiler
@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("absent", [(), ("branch", "gate", "weight")])
def test_opcheck(absent):
    arguments = make_arguments((1, 5, 16), torch.bfloat16, absent=absent)
    leaves = [t if t is None else t.detach().clone().requires_grad_() for t in map(arguments.get, NAMES)]
    moved = random_inverses(5, 0 if absent else 1, 1)
    scaling = (None if absent else torch.rand(1, 5, 3).requires_grad_(), 0.1)
    torch.library.opcheck(norms.norm_forward, (*leaves, *moved, *scaling, 1e-5, False, True))
    plain = [t if t is None else t.detach() for t in leaves]
    scaling = (None if absent else scaling[0].detach(), 0.1)
    _, out, normalised, rstd = norms.norm_forward(*plain, *moved, *scaling, 1e-5, False, True)
    kept = (out, normalised, rstd)
    torch.library.opcheck(norms.norm_backward, (None, *kept, *plain[1:], *moved, *scaling, False, torch.float32))
    torch.library.opcheck(norms.norm_forward, (*plain, None, None, None, 0.0, 1e-5, False, False))
