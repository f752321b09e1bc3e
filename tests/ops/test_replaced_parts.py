"""Layers whose parts were replaced, changed or observed give the same with the CUDA kernels, here emulated."""

import shutil

import pytest
import torch
from ops.scan_inputs import random_order
from torch import nn
from torch.nn.utils import parametrize, prune

from zigma_pl.core.errors import UserError
from zigma_pl.mixers import Mamba, Mamba2, Visit
from zigma_pl.models.block import BlockConditions, FinalLayer, ZigzagBlock
from zigma_pl.models.mixers.mamba import MambaMixer
from zigma_pl.models.mixers.mamba2 import Mamba2Mixer
from zigma_pl.models.taps import tapped
from zigma_pl.ops import mamba_mixer, norms
from zigma_pl.ops.rows import inverse_order
from zigma_pl.ops.ssd import convolved

WIDTH, NUM_TOKENS = 32, 12
OPTIONS = {"mamba": Mamba(), "mamba2": Mamba2(state_size=16, head_dim=32, expand=8, activation_memory="fast")}

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="the emulation of CUDA needs g++, which is missing"),
    pytest.mark.usefixtures("emulated_ssd"),
]


class LowRank(nn.Module):
    """A LoRA layer, whose attribute `weight` is only a part of what it multiplies by."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, 2, bias=False)
        self.up = nn.Linear(2, layer.out_features, bias=False)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    @property
    def weight(self):
        return self.layer.weight

    @property
    def bias(self):
        return self.layer.bias

    def forward(self, rows):
        return self.layer(rows) + self.up(self.down(rows))


class Opaque(nn.Module):
    """A layer without weights, such as a quantised one."""

    def __init__(self, layer):
        super().__init__()
        self.in_features = layer.in_features
        self.multiply = [layer]

    def forward(self, rows):
        return self.multiply[0](rows) * 2


class Half(nn.Module):
    def forward(self, weight):
        return weight / 2


class DoubledMamba(MambaMixer):
    def forward(self, tokens, visit):
        return super().forward(tokens, visit) * 2


class DoubledMamba2(Mamba2Mixer):
    def forward(self, tokens, visit):
        return super().forward(tokens, visit) * 2


class ShiftedScanMamba(MambaMixer):
    def scan(self, projected, visit_order=None):
        return super().scan(projected, visit_order) + 1


class ShiftedScanMamba2(Mamba2Mixer):
    def scan(self, projected, visit_order=None):
        return super().scan(projected, visit_order) + 1


DOUBLED = {"mamba": DoubledMamba, "mamba2": DoubledMamba2}
SHIFTED = {"mamba": ShiftedScanMamba, "mamba2": ShiftedScanMamba2}


def with_bias(mixer, kind):
    weight = mixer.out_proj.weight
    mixer.out_proj = nn.Linear(weight.shape[1], weight.shape[0])


def with_patched_layer(mixer, kind):
    plain = mixer.out_proj.forward
    mixer.out_proj.forward = lambda rows: plain(rows) * 2


def with_patched_mixer(mixer, kind):
    plain = mixer.forward
    mixer.forward = lambda tokens, visit: plain(tokens, visit) * 2


def with_layer_norm(mixer, kind):
    if kind == "mamba2":
        mixer.norm = nn.LayerNorm(mixer.inner_width)
    else:
        mixer.out_proj = nn.Sequential(nn.LayerNorm(mixer.inner_width), mixer.out_proj)


CHANGES = {
    "LoRA of the output": lambda mixer, kind: setattr(mixer, "out_proj", LowRank(mixer.out_proj)),
    "LoRA of the input": lambda mixer, kind: setattr(mixer, "in_proj", LowRank(mixer.in_proj)),
    "no weight": lambda mixer, kind: setattr(mixer, "out_proj", Opaque(mixer.out_proj)),
    "bias": with_bias,
    "parametrised": lambda mixer, kind: parametrize.register_parametrization(mixer.out_proj, "weight", Half()),
    "pruned": lambda mixer, kind: prune.l1_unstructured(mixer.out_proj, "weight", 0.5),
    "changing hook": lambda mixer, kind: mixer.out_proj.register_forward_hook(lambda *given: given[-1] * 2),
    "changing hook of the mixer": lambda mixer, kind: mixer.register_forward_hook(lambda *given: given[-1] * 2),
    "patched layer": with_patched_layer,
    "patched mixer": with_patched_mixer,
    "layer norm": with_layer_norm,
    "own forward": lambda mixer, kind: setattr(mixer, "__class__", DOUBLED[kind]),
    "own scan": lambda mixer, kind: setattr(mixer, "__class__", SHIFTED[kind]),
}


def make_layers(kind, change=None):
    """Two blocks and a final layer, without all-zero parameters."""
    torch.manual_seed(0)
    layers = nn.ModuleList([*(ZigzagBlock(WIDTH, OPTIONS[kind].build(WIDTH)) for _ in range(2)), FinalLayer(WIDTH, 8)])
    if change is not None:
        change(layers[0].mixer, kind)
    for parameter in layers.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return layers


def run(layers):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, NUM_TOKENS, WIDTH, generator=generator)
    conditions = BlockConditions(torch.randn(2, WIDTH, generator=generator))
    order, pending = random_order(NUM_TOKENS), None
    visit = Visit(torch.zeros(NUM_TOKENS, 2), order, inverse_order(order).int())
    *blocks, final = layers
    for block in blocks:
        x, pending = block(x, pending, conditions, visit)
    return final(x, pending, conditions)


def set_fused(monkeypatch, fused):
    for module in (convolved, norms, mamba_mixer):
        monkeypatch.setattr(module, "runs_fused", lambda *_: fused)


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("change", CHANGES)
def test_changed_parts_have_the_same_effect_with_kernels(kind, change, monkeypatch, emulated):
    layers, unchanged, results = make_layers(kind, CHANGES[change]), make_layers(kind), []
    parameters = list(layers.parameters())
    for fused in (False, True):
        set_fused(monkeypatch, fused)
        output = run(layers)
        results.append([output, *torch.autograd.grad(output.square().sum(), parameters)])
    assert emulated.launched
    assert not torch.allclose(run(unchanged), output, rtol=1e-2)
    for plain, found in zip(*results, strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=2e-5 * float(plain.detach().abs().max()))


@pytest.mark.parametrize("name", ["norm", "out_proj", ""])
def test_hooks_get_tensors(name, monkeypatch):
    """Also those of the mixer itself."""
    layers, outputs = make_layers("mamba2"), []
    layers[0].mixer.get_submodule(name).register_forward_hook(lambda *given: outputs.append(given[-1]))
    for fused in (False, True):
        set_fused(monkeypatch, fused)
        run(layers)
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", OPTIONS)
def test_tapped_blocks_run_the_same_kernels(kind, monkeypatch, emulated):
    set_fused(monkeypatch, fused=True)
    layers, launched = make_layers(kind), []
    for names in ([], ["0"], ["0", "0.mixer"] if kind == "mamba2" else ["0"]):
        emulated.launched.clear()
        with tapped(layers, names) as features:
            run(layers)
        assert all(isinstance(features[name], torch.Tensor) for name in names)
        launched.append(list(emulated.launched))
    assert launched[0] == launched[1] == launched[2]


@pytest.mark.parametrize(("kind", "name"), [("mamba", "0.mixer"), ("mamba2", "0.mixer.out_proj")])
def test_a_layer_that_a_kernel_replaces_cannot_be_tapped(kind, name, monkeypatch):
    set_fused(monkeypatch, fused=True)
    layers = make_layers(kind)
    with pytest.raises(UserError, match=name), tapped(layers, [name]):
        run(layers)
