"""Graphed sampling: replays use current inputs and weights, and the sampling copy gives the backbone's output."""

import copy
import functools
from contextlib import nullcontext

import pytest
import torch
from backbones import tiny
from backbones.tiny import BACKBONES

from zigma_pl.backbones import DiT, ZigMa
from zigma_pl.core.batch import Batch, Condition
from zigma_pl.interpolant import Objective
from zigma_pl.mixers import Mamba2
from zigma_pl.models.backbones.base import Backbone
from zigma_pl.ops import nvrtc
from zigma_pl.runtime import graphed_sampling, sampling_copy
from zigma_pl.runtime.compiling import compile_regions
from zigma_pl.runtime.graphed_sampling import GraphedBackbone
from zigma_pl.samplers import Guidance, ODESampler, guided_network
from zigma_pl.scan.schedule import ScanConfig
from zigma_pl.training.module import GenerativeModule


def build(depth=2, **options):
    torch.manual_seed(0)
    backbone = ZigMa(2, 4, 4, patch_size=2, **({"width": 16, "depth": depth, "num_classes": 3} | options)).eval()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return backbone


def draw(batch_size=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x_t, t = torch.randn(batch_size, 2, 4, 4, generator=generator), torch.rand(batch_size, generator=generator)
    return x_t, t, {"class": Condition(torch.randint(3, (batch_size,), generator=generator))}


def assert_follows(graphed_backbone, *inputs, dtype=None):
    """The replay is equal to a call of the backbone, under autocast if there is a dtype."""
    device_type = inputs[0].device.type
    with torch.no_grad(), torch.autocast(device_type, dtype) if dtype else nullcontext():
        predicted, expected = graphed_backbone(*inputs), graphed_backbone.backbone(*inputs)
    assert predicted.dtype == expected.dtype
    assert (predicted - expected).norm() < (1e-2 if dtype else 1e-5) * expected.norm()


def test_without_a_gpu_the_backbone_itself_is_called():
    backbone = build()
    inputs = draw()
    with torch.no_grad():
        assert torch.equal(GraphedBackbone(backbone)(*inputs), backbone(*inputs))
    assert GraphedBackbone(backbone).droppable_conditions == ("class",)


VARIANTS = {
    **{name: (backbone_class, {}) for name, backbone_class in BACKBONES.items()},
    "ZigMa, legacy": (ZigMa, {"residual": "legacy"}),
    "ZigMa, video": (ZigMa, {"latent_frames": 2, "scan": ScanConfig(video="factorized")}),
    "DiT, video": (DiT, {"latent_frames": 2}),
}


@pytest.mark.parametrize("kind", tiny.CONDITIONS)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_backbone_is_replayed_right(name, kind, repeated):
    backbone_class, own = VARIANTS[name]
    options, conditions = tiny.CONDITIONS[kind]
    graphed_backbone = GraphedBackbone(tiny.build(backbone_class, **own, **options).eval())
    x_t, t = tiny.draw(latent_frames=own.get("latent_frames"))
    dropped = dict.fromkeys(conditions, torch.tensor([False, True, False]))
    for dtype in (None, torch.bfloat16):
        assert_follows(graphed_backbone, x_t, t, tiny.masked(conditions), dropped, dtype=dtype)
    assert len(repeated) == 2


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_one_recording_for_each_batch_size(recorded, dtype):
    graphed_backbone = GraphedBackbone(build())
    for seed, batch_size in enumerate((3, 3, 1, 3, 1)):  # 1 for a last short batch
        assert_follows(graphed_backbone, *draw(batch_size, seed), dtype=dtype)
    assert len(recorded) == 2


def test_recorded_kernels_are_launched_early(recorded, monkeypatch):
    early = []

    def record(call, original=graphed_sampling.record):
        early.append(nvrtc._is_early.get())
        return original(call)

    monkeypatch.setattr(graphed_sampling, "record", record)
    assert_follows(GraphedBackbone(build()), *draw())
    assert early == [True]
    assert len(recorded) == 1


def test_an_earlier_result_is_the_callers_own(recorded):
    graphed_backbone = GraphedBackbone(build())
    x_t, t, conditions = draw()
    with torch.no_grad():
        first = graphed_backbone(x_t, t, conditions)
        kept = first.clone()
        graphed_backbone(x_t + 1, t, conditions)
    assert torch.equal(first, kept)


@pytest.mark.usefixtures("recorded")
def test_guidance_sees_the_same_network():
    backbone = build()
    x_t, t, conditions = draw()
    guidance = Guidance(scale=3.0, interval=(0.0, 0.5))
    with torch.no_grad():
        for time in (torch.full_like(t, 0.3), torch.full_like(t, 0.7)):
            networks = (guided_network(b, conditions, guidance) for b in (GraphedBackbone(backbone), backbone))
            torch.testing.assert_close(*(network(x_t, time) for network in networks))


def test_inference_mode_and_no_grad_share_a_recording(recorded):
    graphed_backbone = GraphedBackbone(build())
    with torch.inference_mode():
        assert_follows(graphed_backbone, *draw(), dtype=torch.bfloat16)
    assert_follows(graphed_backbone, *draw(seed=1), dtype=torch.bfloat16)
    assert len(recorded) == 1


@pytest.mark.usefixtures("recorded")
def test_gradients_go_through_the_backbone_itself():
    backbone = build()
    GraphedBackbone(backbone)(*draw()).sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


# ------------------------------------------------------------------------------------------------------- the weights
def fused_step(backbone):
    for parameter in backbone.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(backbone.parameters(), lr=0.1, fused=True).step()


def swap_in_averages(backbone):
    for parameter in backbone.parameters():
        parameter.data.copy_(1.5 * parameter.data)


def recorded_and_moved():
    """A recorded network whose last parameter has moved, and its old tensor, so that the memory is not reused."""
    graphed_backbone = GraphedBackbone(build())
    assert_follows(graphed_backbone, *draw(), dtype=torch.bfloat16)
    last = list(graphed_backbone.backbone.parameters())[-1]
    before = last.data
    last.data = 2.0 * before
    return graphed_backbone, before


def load(backbone):
    backbone.load_state_dict({name: 1.5 * tensor for name, tensor in backbone.state_dict().items()})


@pytest.mark.parametrize("change", [fused_step, swap_in_averages, load])
def test_changed_weights_are_seen(change, recorded):
    graphed_backbone = GraphedBackbone(build())
    assert_follows(graphed_backbone, *draw(), dtype=torch.bfloat16)
    change(graphed_backbone.backbone)
    with graphed_backbone.fixed_weights():
        assert_follows(graphed_backbone, *draw(), dtype=torch.bfloat16)
    change(graphed_backbone.backbone)
    assert_follows(graphed_backbone, *draw(), dtype=torch.bfloat16)
    assert len(recorded) == 1


def test_fixed_weights_are_cast_once(recorded, monkeypatch):
    graphed_backbone = GraphedBackbone(build())
    assert_follows(graphed_backbone, *draw(), dtype=torch.bfloat16)
    refreshed = []
    monkeypatch.setattr(sampling_copy.SamplingCopy, "refresh", lambda instance: refreshed.append(instance) or True)
    with graphed_backbone.fixed_weights():
        for seed in range(3):
            assert_follows(graphed_backbone, *draw(seed=seed), dtype=torch.bfloat16)
    assert len(refreshed) == 1
    for seed in range(3):
        assert_follows(graphed_backbone, *draw(seed=seed), dtype=torch.bfloat16)
    assert len(refreshed) == 4


def test_weights_that_moved_before_they_are_fixed_are_found_once(recorded, monkeypatch):
    graphed_backbone, _ = recorded_and_moved()
    looked_for = []
    matches = sampling_copy.SamplingCopy.matches
    monkeypatch.setattr(
        sampling_copy.SamplingCopy, "matches", lambda *arguments: looked_for.append(1) or matches(*arguments)
    )
    with graphed_backbone.fixed_weights():
        for seed in range(3):
            assert_follows(graphed_backbone, *draw(seed=seed), dtype=torch.bfloat16)
    assert len(looked_for) == 1
    assert len(recorded) == 2


def test_a_module_samples_as_without_graphs_whatever_happens_to_its_weights(repeated):
    module = GenerativeModule(build(), Objective(), ODESampler(num_steps=2), Guidance(scale=2.0)).eval()

    def samples(num_samples):
        batch = Batch(None, torch.arange(num_samples), {"class": Condition(torch.arange(num_samples) % 3)})
        with torch.autocast("cpu", torch.bfloat16):
            return module.sample(batch).latents

    for change in (fused_step, swap_in_averages, load):
        for num_samples in (3, 1):  # 1 for the last short batch
            module.graph_sampling = True
            replayed = samples(num_samples)
            module.graph_sampling = False
            assert torch.allclose(replayed, samples(num_samples), rtol=0.02, atol=0.02)
        change(module.backbone)
    assert len(repeated) == 2


def test_weights_that_moved_are_recorded_anew(recorded):
    graphed_backbone, _ = recorded_and_moved()
    assert_follows(graphed_backbone, *draw(), dtype=torch.bfloat16)
    assert len(recorded) == 2


@pytest.mark.usefixtures("recorded")
def test_a_copy_follows_its_own_backbone():
    graphed_backbone = GraphedBackbone(build(), compile_backbone=False)
    assert_follows(graphed_backbone, *draw())
    copied = copy.deepcopy(graphed_backbone)
    with torch.no_grad():
        copied.backbone.final_layer.projection.weight.mul_(3)
    for one in (graphed_backbone, copied):
        assert_follows(one, *draw(), dtype=torch.bfloat16)


def test_weights_are_held_in_16_bits_where_autocast_would_cast_them(recorded):
    backbone = build()
    names = set(backbone.state_dict())
    graphed_backbone = GraphedBackbone(backbone)
    assert_follows(graphed_backbone, *draw(), dtype=torch.bfloat16)
    casts = [node for node in recorded[0].graph.nodes if node.target is torch.ops.aten._to_copy.default]
    weights = [node for node in casts if node.meta["val"].shape == backbone.blocks[0].mixer.in_proj.weight.shape]
    assert casts
    assert not weights
    copy = graphed_backbone._copies[torch.bfloat16].network
    mixer, original = copy.blocks[1].mixer, backbone.blocks[1].mixer
    assert mixer.in_proj.weight.dtype == mixer.x_proj.weight.dtype == mixer.dt_proj.weight.dtype == torch.bfloat16
    for name in ("A_log", "D", "conv_weight", "dt_proj.bias"):
        assert mixer.get_parameter(name) is original.get_parameter(name)
    assert copy.visit_order_0 is backbone.visit_order_0
    assert set(backbone.state_dict()) == names
    assert original.in_proj.weight.dtype == torch.float32


@pytest.mark.usefixtures("recorded")
def test_products_of_weights_are_computed_in_advance():
    backbone = build(mixers=Mamba2(state_size=4, head_dim=8))
    graphed_backbone, original = GraphedBackbone(backbone), backbone.blocks[1].mixer
    computed = []
    for factor in (1, 3):
        with torch.no_grad():
            original.norm.weight.mul_(factor)
        assert_follows(graphed_backbone, *draw(), dtype=torch.bfloat16)
        mixer = graphed_backbone._copies[torch.bfloat16].network.blocks[1].mixer
        computed.append(mixer.scaled_projection)
        assert mixer.out_proj.weight is original.out_proj.weight  # not copied, since only the product is used
        assert torch.equal(computed[-1], (original.out_proj.weight * original.norm.weight).bfloat16())
    assert computed[0] is computed[1]
    assert original.scaled_projection is None
    assert not original.scaled_weights(torch.float16)


class Doubled(torch.nn.Module):
    """A layer without a weight, such as a quantised one."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, rows):
        return 2 * self.layer(rows)


@pytest.mark.parametrize("is_hook", [False, True])
def test_a_projection_that_changes_is_not_computed_in_advance(is_hook, repeated):
    graphed_backbone = GraphedBackbone(build(mixers=Mamba2(state_size=4, head_dim=8)))
    mixer = graphed_backbone.backbone.blocks[1].mixer
    for changed in (False, True):
        if changed and is_hook:
            mixer.out_proj.register_forward_hook(lambda *given: 2 * given[-1])
        elif changed:
            mixer.out_proj = Doubled(mixer.out_proj)
        assert_follows(graphed_backbone, *draw(), dtype=torch.bfloat16)
        assert len(graphed_backbone._copies[torch.bfloat16]._computed) == (1 if changed else 2)
    assert len(repeated) == 2


def test_all_modulations_are_one_product(recorded):
    backbone = build(depth=3)
    assert_follows(GraphedBackbone(backbone), *draw(), dtype=torch.bfloat16)
    rows = 3 * 3 * 16 + 2 * 16  # shift, scale and gate of three blocks, shift and scale of the final layer
    products = [node for node in recorded[0].graph.nodes if node.target is torch.ops.aten.addmm.default]
    assert [node.meta["val"].shape[1] for node in products].count(rows) == 1
    assert 3 * 16 not in {node.meta["val"].shape[1] for node in products}


@pytest.mark.usefixtures("recorded")
def test_a_layer_with_a_conditioning_of_its_own_is_not_given_that_of_all():
    backbone = build()
    run_block = backbone.run_block
    backbone.run_block = lambda block, x, pending, conditions, visit: run_block(
        block, x, pending, conditions._replace(modulation=conditions.modulation + 1), visit
    )
    assert_follows(GraphedBackbone(backbone), *draw(), dtype=torch.bfloat16)


class OwnBackbone(Backbone):
    """A backbone that embeds its conditions itself, with a modulation as in blocks."""

    def __init__(self, width):
        super().__init__((2, 4, 4))
        self.conditioners, self.width = torch.nn.ModuleDict(), width
        self.modulation = torch.nn.Sequential(torch.nn.SiLU(), torch.nn.Linear(width, 2))

    def forward(self, x_t, t, conditions=None, dropped=None):
        return x_t * self.modulation(t[:, None].expand(-1, self.width))[:, :, None, None]


@pytest.mark.usefixtures("recorded")
def test_modulations_of_a_backbone_of_ones_own_are_called():
    x_t, t, _ = draw()
    assert_follows(GraphedBackbone(OwnBackbone(8).eval()), x_t, t, dtype=torch.bfloat16)


# ---------------------------------------------------------------------------------------------------------- compiling
@pytest.mark.usefixtures("repeated")
def test_compiled_regions_are_what_is_recorded(monkeypatch):
    calls = []

    def backend(module, example_inputs):
        def run(*inputs):
            calls.append(module)
            return module(*inputs)

        return run

    monkeypatch.setattr(sampling_copy, "compile_regions", functools.partial(compile_regions, backend=backend))
    backbone = build(depth=4)
    graphed_backbone = GraphedBackbone(backbone, compile_backbone=True)
    torch.compiler.reset()
    assert_follows(graphed_backbone, *draw(), dtype=torch.bfloat16)
    assert backbone._compiled_call_impl is None  # the backbone itself is not compiled
    called = calls[: len(calls) // 2]
    assert len(called) == 9  # four blocks, final layer, embeddings of patches, positions, time and classes
    assert len(set(map(id, called))) <= 7  # blocks share their code, except the first, for which nothing is pending


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device")
@pytest.mark.parametrize("compile_backbone", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_replay_follows_inputs_and_weights(dtype, compile_backbone):
    backbone = build().cuda()
    graphed_backbone = GraphedBackbone(backbone, compile_backbone)
    for seed, batch_size in enumerate((2, 2, 1, 2)):
        x_t, t, conditions = draw(batch_size, seed)
        inputs = (x_t.cuda(), t.cuda(), {"class": Condition(conditions["class"].values.cuda())})
        with torch.no_grad():
            exact = backbone(*inputs)
            with torch.autocast("cuda", dtype) if dtype else nullcontext():
                error, usual_error = ((network(*inputs) - exact).norm() for network in (graphed_backbone, backbone))
        assert error <= 2 * usual_error + 1e-4 * exact.norm()  # of 16-bit rounding, 0.4 % to 5 % with these weights
        with torch.no_grad():
            backbone.final_layer.projection.weight.mul_(1.5)  # in place: the same graph must see it
            backbone.blocks[0].mixer.in_proj.weight.data.mul_(1.5)
    assert len(graphed_backbone._captures) == 2
