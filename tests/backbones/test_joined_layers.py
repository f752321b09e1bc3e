"""What replayed training computes for all layers together has the gradients of the layers one by one.

CUDA graphs are emulated on the CPU.
"""

from collections import Counter

import pytest
import torch
from backbones.replayed import assert_follows, build, draw, step
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from zigma_pl.core.batch import Condition
from zigma_pl.models.mixers.mamba2 import Mamba2, Mamba2Mixer
from zigma_pl.ops import rms_norm
from zigma_pl.runtime import joined_layers
from zigma_pl.runtime.graphed_training import GraphedTraining

pytestmark = pytest.mark.usefixtures("num_recorded")


class CopyCounter(TorchDispatchMode):
    """Counts casts of one tensor, and of lists of tensors."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_all_weights_that_autocast_casts_are_cast_together(dtype):
    graphed = GraphedTraining(build(num_classes=5))
    conditions = {"class": Condition(torch.arange(3))}
    counters = []
    for network in (graphed.backbone, graphed, graphed):
        graphed.backbone.zero_grad()
        with CopyCounter() as counter:
            step(network, graphed.backbone, *draw(), conditions, dtype=dtype)
        counters.append(counter.counts)
    eager, _, replayed = counters
    linear_layers = [layer for layer in graphed.backbone.modules() if isinstance(layer, torch.nn.Linear)]
    num_weights = sum(2 - (layer.bias is None) for layer in linear_layers)
    # Biases of step sizes are not cast; the weights of norms are cast too, without kernels for them.
    assert eager["_to_copy"] - replayed["_to_copy"] >= 2 * (num_weights - len(graphed.backbone.blocks))
    assert replayed["_foreach_copy_"] == 2


def num_products(network):
    """Return the number of matrix products with a bias in a forward pass."""
    with CopyCounter() as counter, torch.autocast("cpu", torch.bfloat16):
        network(*draw())
    return counter.counts["addmm"]


@pytest.mark.parametrize("name", ["ZigMa", "DiT"])
def test_modulations_are_one_product_under_autocast(name):
    backbone = build(name)
    graphed = GraphedTraining(backbone)
    layers = list(backbone.modules())
    num_modulated = len(backbone.blocks) + 1
    num_products(graphed)  # records
    assert num_products(backbone) - num_products(graphed) == num_modulated - 1
    assert all(now is layer for now, layer in zip(backbone.modules(), layers, strict=True))
    assert "block_conditions" not in vars(backbone)


@pytest.fixture
def norm_left_to_the_next_layer(monkeypatch):
    """Let the scan of Mamba-2 return mean squares, as on a GPU."""
    scan = Mamba2Mixer.scan_and_square

    def scan_and_square(self, projected, visit_order, squared):
        scanned, _ = scan(self, projected, visit_order, squared=False)
        return scanned, scanned.float().square().mean(-1, keepdim=True) if squared else None

    monkeypatch.setattr(Mamba2Mixer, "scan_and_square", scan_and_square)


@pytest.mark.parametrize("memory", ["lean", "fast"])
@pytest.mark.usefixtures("norm_left_to_the_next_layer")
def test_weights_of_all_layers_are_scaled_together_under_autocast(memory, monkeypatch):
    scale = rms_norm.scale_columns_of_all

    def counted(pairs, dtype):
        counts.append(len(pairs))
        return scale(pairs, dtype)

    monkeypatch.setattr(Mamba2Mixer, "_recomputes", lambda self, tokens: memory == "lean" and torch.is_grad_enabled())
    for module in (rms_norm, joined_layers):
        monkeypatch.setattr(module, "scale_columns_of_all", counted)
    backbone = build(mixers=Mamba2(state_size=4, head_dim=8))
    graphed, results = GraphedTraining(backbone), []
    for network in (graphed, graphed, backbone):
        counts = []
        backbone.zero_grad()
        results.append(step(network, backbone, *draw(), dtype=torch.bfloat16))
        if network is graphed:
            assert set(counts) == {len(backbone.blocks)}
    assert len(counts) >= len(backbone.blocks)
    assert all(block.mixer.scaled_projection is None for block in backbone.blocks)
    for found, expected in zip(*results[1:], strict=True):
        assert (found - expected).norm() <= 2 * torch.finfo(torch.bfloat16).eps * expected.norm()


class Doubled(torch.nn.Module):
    """A parametrisation of a weight."""

    def forward(self, weight):
        return 2 * weight


@pytest.mark.usefixtures("norm_left_to_the_next_layer")
def test_changed_layers_are_not_joined():
    """A layer with a hook is called, and a weight that is computed from another one is computed in the recording."""
    backbone = build(mixers=Mamba2(state_size=4, head_dim=8))
    first, second = backbone.blocks[:2]
    first.modulation[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    parametrize.register_parametrization(second.mixer.out_proj, "weight", Doubled())
    assert_follows(GraphedTraining(backbone), *draw(), dtype=torch.bfloat16)


class ModulatedEmbedding(torch.nn.Module):
    """An embedding of the time with a modulation, which is needed before the layers' conditioning is known."""

    def __init__(self, embedding, width):
        super().__init__()
        self.embedding = embedding
        self.modulation = torch.nn.Sequential(torch.nn.SiLU(), torch.nn.Linear(width, width))

    def forward(self, t):
        return self.modulation(self.embedding(t))


def test_a_modulation_among_the_conditions_and_a_method_of_the_instance_are_kept():
    backbone = build()
    backbone.time_embedding = ModulatedEmbedding(backbone.time_embedding, backbone.width)
    embed = backbone.block_conditions
    backbone.block_conditions = own = lambda *arguments: embed(*arguments)
    assert_follows(GraphedTraining(backbone), *draw(), dtype=torch.bfloat16)
    assert backbone.block_conditions is own


@pytest.mark.parametrize("name", ["ZigMa", "DiT"])
def test_a_layer_with_a_conditioning_of_its_own_is_replayed(name):
    def own(module, arguments):
        *before, conditions, visit = arguments
        return *before, conditions._replace(modulation=2 * conditions.modulation), visit

    backbone = build(name)
    backbone.blocks[1].register_forward_pre_hook(own)
    assert_follows(GraphedTraining(backbone), *draw(), dtype=torch.bfloat16)


def without_bias(block):
    block.modulation[1].bias = None


def narrow(block):
    """The modulation of a block depends on the first channels of the conditioning."""
    block.modulation[1] = torch.nn.Linear(8, block.modulation[1].out_features)

    def cut(module, args):
        x, pending, conditions, *rest = args
        return x, pending, conditions._replace(modulation=conditions.modulation[:, :8]), *rest

    block.register_forward_pre_hook(cut)


class Negative(torch.nn.Sequential):
    """Layers with a forward method of their own."""

    def forward(self, x):
        return -super().forward(x)


def negated(block):
    block.modulation = Negative(*block.modulation)


def replaced_forward(block):
    layer = block.modulation[1]
    layer.forward = lambda x: torch.nn.functional.linear(2 * x, layer.weight, layer.bias)


@pytest.mark.parametrize("change", [without_bias, narrow, negated, replaced_forward])
def test_modulations_of_another_kind_are_called(change):
    backbone = build()
    change(backbone.blocks[1])
    assert_follows(GraphedTraining(backbone), *draw(), dtype=torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_modulations_of_blocks_that_are_recomputed_are_not_joined(dtype):
    graphed = GraphedTraining(build(gradient_checkpointing=True))
    results = []
    for network in (graphed, graphed.backbone):
        graphed.backbone.zero_grad()
        results.append(step(network, graphed.backbone, *draw(), dtype=dtype))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
