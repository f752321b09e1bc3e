"""Mamba-2: against a restatement of mamba_ssm.Mamba2, initialisation, options, directions."""

import importlib.util

import pytest
import torch
from backbones import tiny
from torch.nn import functional as F

from zigma_pl.backbones import VisionMamba, ZigMa
from zigma_pl.core.errors import UserError
from zigma_pl.mixers import Mamba, Mamba2, ParallelDirections, Visit
from zigma_pl.models.mixers import mamba2
from zigma_pl.training.optimizers.roles import parameter_roles

POSITIONS = torch.zeros(12, 2)
SIZES = {"S": 384, "B": 768, "L": 1024, "XL": 1152}


def build(width=16, **options):
    torch.manual_seed(0)
    return Mamba2(**({"state_size": 6, "head_dim": 8} | options)).build(width)


def published(weights, u, head_dim, state_size, num_groups):
    """mamba_ssm.Mamba2.forward on (B, L, D) with its parameters, step by step in plain PyTorch."""
    num_heads, inner = len(weights["A_log"]), len(weights["A_log"]) * head_dim
    group_width = num_groups * state_size
    z, xBC, dt = F.linear(u, weights["in_proj.weight"]).split([inner, inner + 2 * group_width, num_heads], dim=-1)
    num_taps = weights["conv1d.weight"].shape[-1]
    convolved = F.conv1d(
        xBC.mT, weights["conv1d.weight"], weights["conv1d.bias"], padding=num_taps - 1, groups=xBC.shape[-1]
    )
    xBC = F.silu(convolved[..., : u.shape[1]].mT)
    x, B, C = xBC.split([inner, group_width, group_width], dim=-1)
    dt = F.softplus(dt + weights["dt_bias"])
    h, outputs = torch.zeros(len(u), num_heads, head_dim, state_size).to(u), []
    for k in range(u.shape[1]):
        x_k = x[:, k].view(-1, num_heads, head_dim)
        B_k, C_k = (
            rows[:, k].view(-1, num_groups, state_size).repeat_interleave(num_heads // num_groups, 1) for rows in (B, C)
        )
        decay = torch.exp(-dt[:, k] * weights["A_log"].exp())
        h = decay[..., None, None] * h + torch.einsum("bh,bhp,bhn->bhpn", dt[:, k], x_k, B_k)
        y_k = torch.einsum("bhpn,bhn->bhp", h, C_k) + weights["D"][:, None] * x_k
        outputs.append(y_k.flatten(1))
    gated = (torch.stack(outputs, 1) * F.silu(z)).unflatten(-1, (num_groups, -1))
    normalised = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + 1e-5)
    return F.linear(normalised.flatten(-2) * weights["norm.weight"], weights["out_proj.weight"])


def random_weights(mixer):
    """Weights that all differ, as those of norms and skips are equal at initialisation."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: value + 0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in mixer.state_dict().items()
    }


@pytest.mark.parametrize("num_groups", [1, 2])
@pytest.mark.parametrize("num_tokens", [3, 100])
def test_mixer_computes_what_the_published_module_computes(num_groups, num_tokens):
    mixer = build(num_groups=num_groups).double()
    weights = random_weights(mixer)
    mixer.load_state_dict(weights)
    u = torch.randn(2, num_tokens, 16, dtype=torch.float64)
    expected = published(weights, u, 8, 6, num_groups)
    torch.testing.assert_close(mixer(u, Visit(POSITIONS)), expected, rtol=1e-6, atol=1e-7)  # A is float32
    single = mixer.float()(u.float(), Visit(POSITIONS))
    torch.testing.assert_close(single, expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("mamba_ssm") is None, reason="mamba_ssm is not installed")
def test_weights_of_mamba_ssm_load_and_give_its_output():
    if not torch.cuda.is_available():
        pytest.skip("mamba_ssm needs CUDA")
    from mamba_ssm import Mamba2 as Published

    torch.manual_seed(0)
    theirs = Published(128, d_state=64, headdim=64, device="cuda")
    ours = Mamba2().build(128).to("cuda")
    ours.load_state_dict(theirs.state_dict())
    u = torch.randn(2, 300, 128, device="cuda")
    torch.testing.assert_close(ours(u, Visit(POSITIONS)), theirs(u), rtol=1e-4, atol=1e-4)


def test_parameters_have_the_published_names_and_shapes():
    shapes = {name: tuple(value.shape) for name, value in build(num_groups=2).state_dict().items()}
    assert shapes == {
        "dt_bias": (4,),
        "A_log": (4,),
        "D": (4,),
        "conv1d.weight": (32 + 24, 1, 4),
        "conv1d.bias": (32 + 24,),
        "in_proj.weight": (32 + 56 + 4, 16),
        "norm.weight": (32,),
        "out_proj.weight": (16, 32),
    }


def test_step_sizes_and_decay_rates_start_in_their_ranges():
    mixer = build(width=1024, head_dim=4)
    dt, rate = F.softplus(mixer.dt_bias), mixer.A_log.exp()
    assert 0.99e-3 <= dt.min() < 1.1e-3
    assert 0.09 < dt.max() <= 0.101
    assert 1 <= rate.min() < 1.1
    assert 15.9 < rate.max() <= 16.001
    assert torch.equal(mixer.D, torch.ones(512))


def test_each_parameter_has_its_role():
    roles = parameter_roles(build())
    assert {name for name, role in roles.items() if role == "scan"} == {"A_log", "D", "dt_bias"}
    assert {name for name, role in roles.items() if role == "matrix"} == {"in_proj.weight", "out_proj.weight"}
    assert roles["conv1d.weight"] == "convolution"
    parallel = parameter_roles(ParallelDirections(direction=Mamba2(head_dim=8)).build(16))
    assert parallel["directions.1.A_log"] == "scan"


def test_mixing_is_causal_along_the_order():
    mixer, order = build(), torch.randperm(12)
    tokens = torch.randn(1, 12, 16)
    changed = tokens.clone()
    changed[:, order[7]] += 1.0
    visit = Visit(POSITIONS, order.int(), torch.argsort(order).int())
    moved = (mixer.mix(tokens, visit) - mixer.mix(changed, visit)).abs().amax(-1)[0] > 0
    assert not moved[order[:7]].any()
    assert moved[order[7:]].all()


@pytest.mark.parametrize("wanted", [False, True])
def test_deterministic_training_reaches_both_ops(wanted, monkeypatch):
    seen = []

    def watch(name):
        original = getattr(mamba2, name)
        monkeypatch.setattr(mamba2, name, lambda *a, **k: seen.append(k["deterministic"]) or original(*a, **k))

    watch("causal_conv1d")
    watch("ssd")
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: wanted)
    build()(torch.randn(1, 4, 16), Visit(POSITIONS))
    assert seen == [wanted, wanted]


# ------------------------------------------------------------------------------------------------------------- sizes
@pytest.mark.parametrize("size", SIZES)
def test_the_defaults_fit_every_size(size):
    with tiny.without_values():
        ours = ZigMa(4, 32, 32, size=size, mixers=Mamba2())
        assert ours.num_parameters() == pytest.approx(ZigMa(4, 32, 32, size=size).num_parameters(), rel=0.03)
    assert ours.blocks[0].mixer.in_proj.in_features == SIZES[size]


def test_inner_width_replaces_expand():
    assert build(inner_width=40).out_proj.in_features == 40
    assert build(expand=3).out_proj.in_features == 48


def test_heads_have_64_channels_where_they_fit():
    heads = {768: (12, 64), 416: (13, 32), 16: (1, 16)}
    for inner, expected in heads.items():
        mixer = Mamba2(inner_width=inner).build(16)
        assert (len(mixer.A_log), mixer.sizes.head_dim) == expected


@pytest.mark.parametrize(
    "options",
    [{"head_dim": 12}, {"head_dim": 0}, {"num_groups": 3}, {"inner_width": 20}, {"inner_width": 0}, {"state_size": 0}],
)
def test_options_that_do_not_fit_are_refused(options):
    with pytest.raises(UserError, match=next(iter(options)).replace("inner_width", "inner")):
        build(**options)


# -------------------------------------------------------------------------------------------------------- directions
def test_a_layer_with_directions_is_the_published_layer_for_one():
    mixer = build()
    parallel = ParallelDirections(1, direction=Mamba2(state_size=6, head_dim=8)).build(16)
    own = ("in_proj", "out_proj", "norm")
    parallel.load_state_dict(
        {n if n.startswith(own) else f"directions.0.{n}": value for n, value in random_weights(mixer).items()}
    )
    mixer.load_state_dict(random_weights(mixer))
    tokens, order = torch.randn(2, 12, 16), torch.randperm(12)
    visit = Visit(POSITIONS, order.int(), torch.argsort(order).int())
    torch.testing.assert_close(parallel.mix(tokens, visit), mixer.mix(tokens, visit))


def test_directions_are_summed_before_the_norm():
    mixer = ParallelDirections(3, direction=Mamba2(state_size=6, head_dim=8)).build(16)
    tokens, orders = torch.randn(2, 12, 16), torch.stack([torch.randperm(12) for _ in range(3)])
    projected = mixer.in_proj(tokens)
    scanned = torch.zeros(2, 12, 32)
    for direction, order in zip(mixer.directions, orders, strict=True):
        scanned[:, order] += direction.scan(projected[:, order])
    expected = mixer.out_proj(mixer.norm(scanned))
    torch.testing.assert_close(mixer(tokens, Visit(POSITIONS, orders.int())), expected)


def test_vision_mamba_takes_mamba2():
    options = ParallelDirections(2, direction=Mamba2(state_size=4, head_dim=8))
    backbone = tiny.build(VisionMamba, mixers=options)
    again = VisionMamba.from_config(backbone.config)
    again.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(again(*tiny.draw()), backbone(*tiny.draw()))
    assert type(again.blocks[0].mixer.directions[1]) is mamba2.SsdDirection


def test_options_of_mamba_beside_those_of_the_direction_are_refused():
    with pytest.raises(UserError, match="state_size"):
        ParallelDirections(2, state_size=8, direction=Mamba2())
    ParallelDirections(2, direction=Mamba(state_size=8))


def train_once(mixer, tokens):
    """Gradients by name, and the number of bytes that are stored for the backward pass, each tensor once."""
    stored = {}

    def store(tensor):
        stored[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    tokens = tokens.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(store, lambda tensor: tensor):
        out = mixer(tokens, Visit(POSITIONS, torch.arange(11, -1, -1).int()))
    out.square().sum().backward()
    return {"tokens": tokens.grad, **{name: p.grad for name, p in mixer.named_parameters()}}, sum(stored.values())


@pytest.mark.parametrize(("memory", "is_lean"), [("auto", True), ("lean", True), ("fast", False)])
def test_lean_layers_store_less_and_have_the_same_gradients(memory, is_lean, monkeypatch):
    num_projections = []
    expected, most = train_once(build(), tokens := torch.randn(2, 12, 16))
    mixer = build(activation_memory=memory)
    monkeypatch.setattr(mixer, "_recomputes", lambda tokens: mixer.activation_memory != "fast")  # as on a GPU
    mixer.out_proj.register_forward_hook(lambda *_: num_projections.append(1))
    found, bytes_stored = train_once(mixer, tokens)
    assert len(num_projections) == 1  # the output projection is not computed again
    assert found.keys() == expected.keys()
    assert all(found[name].equal(expected[name]) for name in found)
    outputs = 4 * 2 * 12 * (mixer.num_projected + 32 + 2 * 6 + 2 * 32)  # of projection, convolution, scan and norm
    assert most - bytes_stored >= outputs if is_lean else bytes_stored == most


def test_a_layer_says_what_more_it_would_store():
    mixer = build(state_size=64, head_dim=32)
    states = 32 * 2 * 64 / 64  # bytes per token of states of all channels, kept after every 64 tokens, in bfloat16
    assert mixer.extra_activation_bytes(1000, 2) == 1000 * (2 * (mixer.num_projected + 32 + 2 * 64 + 2 * 32) + states)
    mixer.store_more_activations()
    assert (mixer.activation_memory, mixer.extra_activation_bytes(1000, 2)) == ("fast", 0)
    lean = build(activation_memory="lean")
    lean.store_more_activations()
    assert (lean.activation_memory, lean.extra_activation_bytes(1000, 2)) == ("lean", 0)
