"""The complete Mamba branch as one op: emulated CUDA kernels, compared with separate ops in float64."""

import functools
import shutil
from types import SimpleNamespace

import pytest
import torch
from ops.scan_inputs import random_order

from zigma_pl.backbones import ParallelMamba, ZigMa
from zigma_pl.core.batch import Condition
from zigma_pl.mixers import Branch, Visit
from zigma_pl.models.mixers.mamba import MambaMixer
from zigma_pl.ops import mamba_mixer, norms
from zigma_pl.ops.backends import relative_errors
from zigma_pl.ops.mamba_mixer import MixerWeights
from zigma_pl.ops.rows import inverse_order, take_rows

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 4e-2}
WIDTH, NUM_STATES, NUM_TOKENS = 16, 16, 33
INPUTS = ("x", "branch", "gate", "norm_weight", "shift", "scale")
PARAMETERS = dict(
    zip(
        MixerWeights._fields,
        ("in_proj.weight", "conv_weight", "conv_bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias", "A_log", "D",
         "out_proj.weight"),
        strict=True,
    )
)  # fmt: skip

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulation of CUDA needs g++, which is missing")


def make_arguments(dtype, absent=(), num_tokens=NUM_TOKENS):
    """Inputs and weights by name; outputs of a block's linear layers have `dtype`, all others float32."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    parameters = MambaMixer(WIDTH, NUM_STATES).state_dict()
    rows = torch.randn(2, 2, num_tokens, WIDTH, generator=generator)
    gate, shift, scale = torch.randn(2, 1, 3 * WIDTH, generator=generator).to(dtype).chunk(3, -1)
    inputs = (rows[0], rows[1].to(dtype), gate, torch.rand(WIDTH, generator=generator) + 0.5, shift, scale)
    weights = {n: parameters[key] + 0.1 * torch.randn(parameters[key].shape) for n, key in PARAMETERS.items()}
    return {n: t for n, t in {**dict(zip(INPUTS, inputs, strict=True)), **weights}.items() if n not in absent}


def run_op(memory, branch_inverse=None, **given):
    """Both results as one tensor."""
    weights = MixerWeights(*(given[name] for name in MixerWeights._fields))
    x_new, out = mamba_mixer.add_norm_mix(
        *map(given.get, INPUTS), weights, random_order(given["x"].shape[1]), epsilon=1e-5, activation_memory=memory,
        deterministic=True, branch_inverse=branch_inverse,
    )  # fmt: skip
    return torch.cat([x_new, out.to(x_new.dtype)], -1)


def run_plain(**given):
    mixer = MambaMixer(WIDTH, NUM_STATES)
    norm = SimpleNamespace(weight=given["norm_weight"], eps=1e-5)
    for name, key in PARAMETERS.items():
        owner, _, last = key.rpartition(".")
        module = mixer.get_submodule(owner)
        delattr(module, last)
        setattr(module, last, given[name])  # a tensor in the place of the parameter, so that gradients reach it
    branch = Branch(given["branch"], given["gate"]) if "branch" in given else None
    visit = Visit(torch.empty(0), random_order(given["x"].shape[1]))
    return torch.cat(mixer.add_norm_mix(given["x"], branch, norm, given["shift"], given["scale"], visit)[:2], -1)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(
    ("dtype", "memory", "absent"),
    [
        (torch.float32, "lean", ()),
        (torch.float32, "fast", ("branch", "gate")),  # as in the first layer
        (torch.bfloat16, "lean", ()),
    ],
)
def test_output_and_gradients(dtype, memory, absent):
    arguments = make_arguments(dtype, absent)
    errors = relative_errors(functools.partial(run_op, memory), run_plain, arguments)
    assert max(errors.values()) < TOLERANCES[dtype], errors


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("compiling", [False, True])
def test_branch_is_read_where_the_layer_before_left_it(compiling, monkeypatch):
    """The op with rows in visit order, which the next norm reads through the inverse."""
    arguments, inverse = make_arguments(torch.float32), torch.randperm(NUM_TOKENS).int()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    weights_of_loss = torch.randn(2, NUM_TOKENS, 2 * WIDTH)
    results = []
    for moved in (False, True):
        leaves = {name: t.detach().clone().requires_grad_() for name, t in arguments.items()}
        given = dict(leaves)
        if moved:
            given["branch"] = take_rows(leaves["branch"], inverse_order(inverse))
        output = run_op("lean", branch_inverse=inverse if moved else None, **given)
        results.append([output, *torch.autograd.grad((output * weights_of_loss).sum(), list(leaves.values()))])
    for plain, found in zip(*results, strict=True):
        torch.testing.assert_close(found, plain)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("absent", [(), ("branch", "gate")])
def test_all_ways_give_the_same_bits(absent, monkeypatch):
    arguments = make_arguments(torch.bfloat16, absent, num_tokens=7)
    results = []
    for memory, compiling in (("lean", False), ("fast", False), ("lean", True), ("fast", True)):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda value=compiling: value)
        leaves = {n: t.detach().requires_grad_() for n, t in arguments.items()}
        output = run_op(memory, **leaves)
        results.append([output, *torch.autograd.grad(output.square().sum(), list(leaves.values()))])
        with torch.no_grad():
            assert torch.equal(run_op(memory, **arguments), output)
    for others in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], others, strict=True))


@pytest.mark.usefixtures("emulated")
def test_lean_keeps_what_it_says():
    arguments, order = make_arguments(torch.bfloat16), random_order(NUM_TOKENS)
    inputs, weights = [arguments[n] for n in INPUTS], [arguments[n] for n in MixerWeights._fields]
    sizes = {}
    for memory in ("nothing", "lean", "fast"):
        _, _, *kept = mamba_mixer.mix_forward(*inputs, None, None, weights, order, 0, 1e-5, memory, False)
        *rows, states, entered, u, delta = [t for t in kept if t.dtype != torch.float32]
        sizes[memory] = sum(t.numel() for t in (*rows, entered, u, delta)) / (2 * NUM_TOKENS)
        assert (states.numel() > 0) == (memory != "nothing")
    projected = arguments["x_proj"].shape[0]
    assert sizes == {"nothing": 0, "lean": 2 * WIDTH + projected, "fast": 10 * WIDTH + projected}


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(("kept", "absent"), [("nothing", ()), ("lean", ()), ("fast", ("branch", "gate"))])
def test_opcheck(kept, absent):
    arguments, order = make_arguments(torch.bfloat16, absent, num_tokens=3), random_order(3)
    inputs, weights = [arguments.get(n) for n in INPUTS], [arguments[n] for n in MixerWeights._fields]
    options = (order, 0, 1e-5, kept, True)
    if kept == "nothing":
        torch.library.opcheck(mamba_mixer.mix_forward, (*inputs, None, None, weights, *options))
        return
    leaves = [t if t is None else t.detach().clone().requires_grad_() for t in inputs]
    weight_leaves = [w.detach().clone().requires_grad_() for w in weights]
    torch.library.opcheck(mamba_mixer.mix_forward, (*leaves, None, None, weight_leaves, *options))
    x_new, out, *rest = mamba_mixer.mix_forward(*inputs, None, None, weights, *options)
    dx_new = None if absent else x_new
    backward = (dx_new, out, rest, *inputs[1:], None, None, weights, order, 0, True, torch.float32)
    torch.library.opcheck(mamba_mixer.mix_backward, backward)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(
    ("backbone_class", "options"),
    [(ZigMa, {}), (ZigMa, {"caption_dim": 5, "gradient_checkpointing": True}), (ParallelMamba, {})],
)
def test_backbone_gives_the_same_with_and_without_the_ops(backbone_class, options, monkeypatch):
    torch.manual_seed(0)
    backbone = backbone_class(2, 4, 6, patch_size=2, width=16, depth=2, **options)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x_t, t = torch.randn(2, 2, 4, 6), torch.rand(2)
    conditions = {"caption": Condition(torch.randn(2, 3, 5))} if options else None
    results = []
    for fused in (False, True):
        monkeypatch.setattr(norms, "runs_fused", lambda x, shift, value=fused: value)
        output = backbone(x_t, t, conditions)
        unused = {"allow_unused": True, "materialize_grads": True}  # the entries for no condition
        gradients = torch.autograd.grad(output.square().sum(), list(backbone.parameters()), **unused)
        results.append([output.detach(), *gradients])
    for plain, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))
