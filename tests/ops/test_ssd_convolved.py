"""Convolution and scan of Mamba-2 as one function: emulated CUDA kernels, compared with separate ops in float64."""

import functools
import shutil

import pytest
import torch
from ops.scan_inputs import random_order
from torch._subclasses.fake_tensor import FakeTensorMode

from zigma_pl.mixers import Mamba, Mamba2, UnscaledRows, Visit
from zigma_pl.models.block import BlockConditions, FinalLayer, ZigzagBlock
from zigma_pl.models.mixers import mamba2
from zigma_pl.models.mixers.sequences import Sequences
from zigma_pl.ops import mamba_mixer, norms, nvrtc
from zigma_pl.ops.backends import relative_errors
from zigma_pl.ops.causal_conv1d import causal_conv1d
from zigma_pl.ops.rows import inverse_order
from zigma_pl.ops.ssd import convolved, launch, layout, ssd
from zigma_pl.ops.ssd.convolved import convolve_and_scan
from zigma_pl.ops.ssd.sizes import Sizes

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="the emulation of CUDA needs g++, which is missing"),
    pytest.mark.usefixtures("emulated_ssd"),
]


def make_arguments(sizes, dtype, num_tokens):
    generator = torch.Generator().manual_seed(0)
    normal = functools.partial(torch.randn, generator=generator)
    _, num_convolved, num_heads = sizes.parts
    return {
        "projected": normal(2, num_tokens, sum(sizes.parts)).to(dtype),
        "conv_weight": 0.5 * normal(num_convolved, 4),
        "conv_bias": 0.5 * normal(num_convolved),
        "A_log": torch.log(0.1 + torch.rand(num_heads, generator=generator)),
        "skip": normal(num_heads),
        "dt_bias": normal(num_heads) - 1,
    }


def separately(sizes, visit_order, projected, conv_weight, conv_bias, A_log, skip, dt_bias):
    gate, rows, dt = projected.split(sizes.parts, -1)
    rows = causal_conv1d(rows, conv_weight, conv_bias, visit_order=visit_order)
    x, B, C = sizes.split(rows)
    options = {"skip": skip, "gate": sizes.as_heads(gate), "dt_bias": dt_bias, "visit_order": visit_order}
    y = ssd(x, dt, -torch.exp(A_log), B, C, **options).flatten(2)
    return torch.cat([y, y.square().mean(-1, keepdim=True)], -1)


def together(y, mean_squares):
    """Rows, and their mean square as one more column."""
    return torch.cat([y, mean_squares.sum(-1, keepdim=True).to(y.dtype)], -1)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(
    ("sizes", "num_tokens", "available"),
    [
        (Sizes(8, 32, 1, 16), 1, 227),
        (Sizes(8, 32, 2, 16), 70, 227),
        (Sizes(8, 128, 1, 64), 70, 99),  # heads in slices, whose gradients of the step sizes are added
    ],
)
def test_output_and_gradients(sizes, num_tokens, available, dtype, deterministic, monkeypatch):
    monkeypatch.setattr(launch, "shared_bytes", lambda device: available * 1024)
    slices = layout.layout_for(sizes.num_states, sizes.head_dim, dtype.itemsize, available * 1024).slices
    assert (slices > 1) == (available == 99)
    order = random_order(num_tokens)

    def run(**given):
        options = {"sizes": sizes, "deterministic": deterministic, "squared": True}
        return together(*convolve_and_scan(**given, visit_order=order, **options))

    errors = relative_errors(run, functools.partial(separately, sizes, order), make_arguments(sizes, dtype, num_tokens))
    assert max(errors.values()) < TOLERANCES[dtype], errors


def test_mean_squares_are_optional_and_may_be_all_that_is_used(monkeypatch, emulated):
    monkeypatch.setattr(launch, "num_multiprocessors", lambda device: 40)  # several pieces of the sequence in parallel
    sizes, order = Sizes(8, 32, 1, 16), random_order(200)
    arguments = {n: t.requires_grad_() for n, t in make_arguments(sizes, torch.float32, 200).items()}
    y, mean_squares = convolve_and_scan(**arguments, **rest(order, sizes))
    assert not mean_squares.numel()
    squared_y, mean_squares = convolve_and_scan(**arguments, **rest(order, sizes), squared=True)
    assert torch.equal(squared_y, y)
    inputs = list(arguments.values())
    found = torch.autograd.grad(mean_squares.sum(-1).mul(y.detach()[..., 0]).sum(), inputs)
    expected = torch.autograd.grad(y.square().mean(-1).mul(y.detach()[..., 0]).sum(), inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))
    assert "ssd_backward_carries" in emulated.launched


def test_without_gradients_the_output_is_the_same():
    sizes, order = Sizes(8, 32, 1, 16), random_order(70)
    arguments = make_arguments(sizes, torch.bfloat16, 70)
    options = {**rest(order, sizes), "squared": True}
    trained = convolve_and_scan(**arguments | {"skip": arguments["skip"].requires_grad_()}, **options)
    with torch.no_grad():
        assert all(map(torch.equal, convolve_and_scan(**arguments, **options), trained))


def rest(order, sizes):
    return {"visit_order": order, "sizes": sizes, "deterministic": True}


@pytest.mark.parametrize(("differentiated", "squared"), [(True, True), (True, False), (False, True)])
def test_opcheck(differentiated, squared):
    sizes = Sizes(8, 32, 1, 16)
    arguments = make_arguments(sizes, torch.float32, 5)
    inputs = [t.requires_grad_(differentiated) for t in arguments.values()]
    given = (*inputs, random_order(5), list(vars(sizes).values()), differentiated, True, squared)
    torch.library.opcheck(convolved.forward_op, given)
    if differentiated:
        y, squares, *kept = (t.detach() for t in convolved.forward_op(*given))
        of_squares = (torch.ones_like(squares), y) if squared else (None, None)
        gradients, inputs = (torch.ones_like(y), of_squares[0]), [t.detach() for t in inputs]
        backward = (*gradients, *inputs, random_order(5), *kept, of_squares[1], given[7], True)
        torch.library.opcheck(convolved.backward_op, backward)


def test_compiled_code_runs_one_op_and_copies_no_part_of_the_projection(monkeypatch):
    """Dynamo gives one op each way; its gradients are those of the eager function."""
    sizes, order = Sizes(8, 32, 1, 16), random_order(5)
    monkeypatch.setattr(convolved, "runs_eagerly", lambda tensor: not torch.compiler.is_compiling())
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    def run(*inputs):
        return together(*convolve_and_scan(*inputs, **rest(order, sizes), squared=True))

    inputs = [t.requires_grad_() for t in make_arguments(sizes, torch.float32, 5).values()]
    results = []
    for function in (run, torch.compile(run, backend=backend, fullgraph=True)):
        y = function(*inputs)
        results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    called = [node.target for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert sum("convolve_and_scan" in str(target) for target in called) == 1
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


@pytest.mark.parametrize("memory", ["lean", "fast"])
def test_a_mixer_gives_the_same_with_and_without_it(memory, monkeypatch, emulated):
    torch.manual_seed(0)
    mixer = Mamba2(state_size=16, head_dim=32, expand=8, activation_memory=memory).build(32)
    tokens, visit = torch.randn(2, 12, 32), Visit(torch.zeros(12, 2), torch.randperm(12).int())
    monkeypatch.setattr(mixer, "_recomputes", lambda tokens: memory == "lean")
    results = []
    for fused in (False, True):
        monkeypatch.setattr(convolved, "runs_fused", lambda *_, value=fused: value)
        output = mixer(tokens, visit)
        results.append([output, *torch.autograd.grad(output.square().sum(), list(mixer.parameters()))])
        assert ("ssd_backward" in emulated.launched) == fused
    for plain, found in zip(*results, strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5 * float(plain.detach().abs().max()))


@pytest.mark.parametrize(
    ("num_heads", "itemsize", "aligned"), [(24, 2, True), (20, 2, False), (20, 4, True), (6, 4, False)]
)
def test_gradients_in_place_need_aligned_rows(num_heads, itemsize, aligned):
    assert Sizes(num_heads, 64, 1, 64).are_aligned(itemsize) == aligned


@pytest.mark.parametrize(
    ("sizes", "dtype", "available", "runs"),
    [
        (Sizes(8, 64, 1, 64), torch.bfloat16, True, True),
        (Sizes(8, 64, 1, 64), torch.bfloat16, False, False),  # `ssd` then takes another backend
        (Sizes(8, 64, 1, 12), torch.float32, True, False),
        (Sizes(8, 48, 1, 64), torch.bfloat16, True, False),
        (Sizes(8, 64, 1, 136), torch.bfloat16, True, False),
        (Sizes(8, 64, 1, 64), torch.float64, True, False),
    ],
)
def test_sizes_that_run_as_one_function(monkeypatch, sizes, dtype, available, runs):
    monkeypatch.setattr(nvrtc, "available", lambda: (available, ""))
    with FakeTensorMode():
        rows = torch.empty(2, 5, sum(sizes.parts), dtype=dtype, device="cuda", requires_grad=True)
        weight = torch.empty(sizes.parts[1], 4, device="cuda")
    assert convolved.runs_fused(rows, weight, None, sizes, "auto") == runs


def test_tensors_on_the_cpu_take_separate_ops():
    sizes = Sizes(8, 32, 1, 16)
    rows = torch.zeros(1, 3, sum(sizes.parts), requires_grad=True)
    assert not convolved.runs_fused(rows, torch.zeros(288, 4), None, sizes, "auto")


def run_blocks(layers, x, conditioning, visit):
    """Run blocks and a final layer; return its output, and whether each branch was left unscaled."""
    *blocks, final = layers
    pending, unscaled, conditions = None, [], BlockConditions(conditioning)
    for block in blocks:
        x, pending = block(x, pending, conditions, visit)
        unscaled.append(isinstance(pending.mixed, UnscaledRows))
    return final(x, pending, conditions), unscaled


def make_layers(memory="fast", sequences=None):
    """Two blocks with Mamba-2 and one with Mamba, and a final layer, without all-zero parameters."""
    torch.manual_seed(0)
    ssd2 = Mamba2(state_size=16, head_dim=32, expand=8, activation_memory=memory)
    blocks = [ZigzagBlock(32, options.build(32), sequences=sequences) for options in (ssd2, ssd2, Mamba())]
    layers = torch.nn.ModuleList([*blocks, FinalLayer(32, 8)])
    for parameter in layers.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return layers


@pytest.mark.parametrize(
    ("memory", "sequences"), [("lean", None), ("fast", None), ("fast", Sequences("space", 3))], ids=str
)
def test_blocks_apply_the_factors_of_the_norm_in_the_next_norm(memory, sequences, monkeypatch, emulated):
    layers, x, conditioning = make_layers(memory, sequences), torch.randn(2, 12, 32), torch.randn(2, 32)
    order = random_order(12 if sequences is None else 4)
    visit = Visit(torch.zeros(12, 2), order, inverse_order(order).int())
    monkeypatch.setattr(mamba2.Mamba2Mixer, "_recomputes", lambda self, tokens: memory == "lean")
    results = []
    for fused in (False, True):
        monkeypatch.setattr(convolved, "runs_fused", lambda *_, value=fused: value)
        monkeypatch.setattr(norms, "runs_fused", lambda *_, value=fused: value)
        monkeypatch.setattr(mamba_mixer, "runs_fused", lambda *_, value=fused: value)
        output, unscaled = run_blocks(layers, x, conditioning, visit)
        results.append([output, *torch.autograd.grad(output.square().sum(), list(layers.parameters()))])
        assert unscaled == [fused, fused, False]
        with torch.no_grad():
            torch.testing.assert_close(run_blocks(layers, x, conditioning, visit)[0], output)
    with torch.no_grad(), monkeypatch.context() as patched:  # with weights that were computed in advance
        for block in layers[:2]:
            ((matrix, factors),) = block.mixer.scaled_weights(torch.float32).values()
            block.mixer.scaled_projection = matrix * factors
        patched.setattr(mamba2, "scale_columns", None)
        torch.testing.assert_close(run_blocks(layers, x, conditioning, visit)[0], output)
    for plain, found in zip(*results, strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=2e-5 * float(plain.detach().abs().max()))
