"""Tests of the common interface for all backbones in `tiny.BACKBONES`."""

import functools

import pytest
import torch
from backbones import tiny
from backbones.tiny import BACKBONES

import zigma_pl
from zigma_pl.backbones import ParallelMamba, UViT, ZigMa
from zigma_pl.core.batch import Condition
from zigma_pl.core.errors import UserError
from zigma_pl.scan.schedule import ScanConfig

VARIANTS = {
    **BACKBONES,
    "ZigMa, legacy": functools.partial(ZigMa, residual="legacy"),
    "ParallelMamba, three orders": functools.partial(ParallelMamba, scan=ScanConfig("hilbert", num_orders=3)),
    "UViT, no convolution": functools.partial(UViT, final_convolution=False),
    "UViT, even depth": functools.partial(UViT, depth=4),
    **{f"{name}, video": functools.partial(backbone, latent_frames=2) for name, backbone in BACKBONES.items()},
    "ZigMa, factorized": functools.partial(ZigMa, latent_frames=2, scan=ScanConfig(video="factorized")),
    "ZigMa, factorized, legacy": functools.partial(
        ZigMa, latent_frames=2, scan=ScanConfig(video="factorized", plan=("time", "space")), residual="legacy"
    ),
}


@pytest.fixture(params=VARIANTS)
def variant(request):
    """Return the class of one kind of backbone and its options."""
    variant = VARIANTS[request.param]
    return getattr(variant, "func", variant), getattr(variant, "keywords", {})


@pytest.fixture
def build(variant):
    """Return a function that builds a tiny backbone of one kind."""
    backbone_class, own = variant
    return lambda randomise=True, **options: tiny.build(backbone_class, randomise, **(own | options))


@pytest.fixture
def draw(variant):
    """Return a function that draws x_t and t for that kind."""
    return functools.partial(tiny.draw, latent_frames=variant[1].get("latent_frames"))


@pytest.mark.parametrize("kind", tiny.CONDITIONS)
def test_prediction_starts_at_zero_and_every_parameter_learns(build, draw, kind):
    options, conditions = tiny.CONDITIONS[kind]
    fresh = build(randomise=False, **options)
    assert fresh(*draw(), conditions).eq(0).all()
    fresh(*draw(), conditions).sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in fresh.parameters() if p.ndim > 1)  # zero, but not stuck
    backbone = build(**options)
    prediction = backbone(*draw(), conditions, dict.fromkeys(conditions, torch.tensor([False, True, False])))
    assert prediction.shape == draw()[0].shape
    prediction.square().sum().backward()
    parameters = dict(backbone.named_parameters())
    assert not [name for name, parameter in parameters.items() if parameter.grad is None or not parameter.grad.any()]


@pytest.mark.parametrize("kind", tiny.CONDITIONS)
def test_samples_do_not_mix_and_time_matters(build, draw, kind):
    options, conditions = tiny.CONDITIONS[kind]
    backbone, (x, t) = build(**options), draw()
    together = backbone(x, t, conditions)
    alone = backbone(x[1:2], t[1:2], tiny.part(conditions, slice(1, 2)))
    torch.testing.assert_close(together[1:2], alone)
    assert not torch.allclose(backbone(x, 1 - t, conditions), together)


def test_dropped_condition_is_no_condition(build, draw):
    options, conditions = tiny.CONDITIONS["both"]
    backbone, (x, t) = build(**options), draw()
    everything = dict.fromkeys(conditions, torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(backbone(x, t, conditions, everything), backbone(x, t))
    mixed = backbone(x, t, conditions, dict.fromkeys(conditions, torch.tensor([True, False, True])))
    torch.testing.assert_close(mixed[1], backbone(x, t, conditions)[1])
    torch.testing.assert_close(mixed[2], backbone(x, t)[2])
    for name in conditions:
        without = {other: conditions[other] for other in conditions if other != name}
        dropped = backbone(x, t, conditions, {name: everything[name]})
        torch.testing.assert_close(dropped, backbone(x, t, without))
        assert not torch.allclose(backbone(x, t, conditions), dropped)


def test_masked_caption_tokens_change_nothing(build, draw):
    backbone, (x, t) = build(caption_dim=5), draw()
    features = tiny.CAPTIONS.values
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[:, 4:] = False
    masked, short = {"caption": Condition(features, mask)}, {"caption": Condition(features[:, :4])}
    torch.testing.assert_close(backbone(x, t, masked), backbone(x, t, short))
    dropped = {"caption": torch.tensor([False, True, False])}
    torch.testing.assert_close(backbone(x, t, masked, dropped), backbone(x, t, short, dropped))


def test_gradient_checkpointing_changes_nothing(build, draw):
    gradients, num_kept = [], []
    for backbone in (build(), build(gradient_checkpointing=True)):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor, kept=kept: kept.append(0) or tensor, lambda t: t):
            loss = backbone(*draw()).square().sum()
        loss.backward()
        num_kept.append(len(kept))
        gradients.append([parameter.grad for parameter in backbone.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert num_kept[1] < num_kept[0]


def test_a_training_pass_draws_no_random_numbers(build, draw):
    """Gradient checkpointing does not restore the generators before it recomputes a block."""
    backbone = build().train()
    state = torch.get_rng_state()
    backbone(*draw()).sum().backward()
    assert torch.equal(torch.get_rng_state(), state)


def test_bf16_autocast_stays_close_to_float32(build, draw):
    backbone = build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = backbone(*draw())
    high = backbone(*draw())
    assert torch.linalg.norm(low.float() - high) < 0.05 * torch.linalg.norm(high)


@pytest.mark.parametrize("kind", ["none", "both"])
def test_folder_gives_the_same_backbone_back(build, draw, kind, tmp_path):
    options, conditions = tiny.CONDITIONS[kind]
    backbone = build(**options, position_embedding="cosine")
    loaded = zigma_pl.load_backbone(zigma_pl.save_pretrained(backbone, tmp_path))
    assert type(loaded) is type(backbone)
    assert loaded.config == backbone.config
    with torch.no_grad():
        assert torch.equal(loaded(*draw(), conditions), backbone(*draw(), conditions))


@pytest.mark.parametrize("variant", ["ZigMa", "VisionMamba", "DiT", "UViT", "ZigMa, factorized, legacy"], indirect=True)
def test_compiles_without_graph_breaks(variant, build, draw):
    torch.compiler.reset()
    depth = 3 if variant[0] is UViT else 2 if "latent_frames" in variant[1] else 1
    backbone, (x, t) = build(caption_dim=5, depth=depth), draw()
    conditions, dropped = tiny.CONDITIONS["captions"][1], {"caption": torch.tensor([False, True, False])}
    compiled = torch.compile(backbone, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, t, conditions, dropped), backbone(x, t, conditions, dropped))


@functools.cache
def num_parameters(name, size, positions):
    with tiny.without_values():
        return BACKBONES[name](4, 32, 32, size=size, position_embedding=positions).num_parameters()


@pytest.mark.parametrize(
    ("size", "positions"),
    [("S", "cosine"), ("B", "learnable"), ("L", "learnable"), ("XL", "learnable")],
)
@pytest.mark.parametrize("name", sorted(BACKBONES.keys() - {"ZigMa"}))
def test_named_sizes_have_as_many_parameters_as_zigma(name, size, positions):
    ours, zigma = (num_parameters(backbone, size, positions) for backbone in (name, "ZigMa"))
    assert ours == pytest.approx(zigma, rel=0.03)


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_video_keeps_the_parameters_and_adds_a_position_for_each_frame(name):
    """The models of the paper's table 4 (bidirectional, 3D zigzag, sst) are therefore equally large, as for images."""
    options = {"patch_size": 2, "size": "B", "position_embedding": "learnable", "num_classes": 101}
    with tiny.without_values():
        pictures, clips = (BACKBONES[name](4, 32, 32, latent_frames=frames, **options) for frames in (None, 16))
    shapes = [{n: p.shape for n, p in backbone.named_parameters()} for backbone in (pictures, clips)]
    assert shapes[1] == shapes[0] | {"frame_position_embedding.table": (1, 16, 768)}


@pytest.mark.parametrize(
    ("options", "conditions", "message"),
    [
        ({}, {"class": Condition(torch.zeros(3, dtype=torch.int64))}, "'class'.*num_classes"),
        ({"num_classes": 4}, torch.zeros(3, dtype=torch.int64), "by name"),
        ({"num_classes": 4}, {"class": torch.zeros(3, dtype=torch.int64)}, "by name"),
        ({"num_classes": 4}, {"class": Condition(torch.zeros(3))}, "class ids"),
        ({"num_classes": 4}, {"class": Condition(torch.zeros(2, dtype=torch.int64))}, r"\(B,\)"),
        ({"caption_dim": 5}, {"caption": Condition(torch.zeros(3, 7, 6))}, "caption_dim"),
        ({"caption_dim": 5}, {"caption": Condition(torch.zeros(3, 7, 5), torch.ones(3, 6).bool())}, r"\(B, T\)"),
        ({"num_classes": 4, "null_condition": False}, {}, "'class' is missing"),
    ],
)
def test_wrong_conditions_are_explained(build, draw, options, conditions, message):
    with pytest.raises(UserError, match=message):
        build(**options)(*draw(), conditions)


def test_wrong_options_are_explained(build, variant):
    with pytest.raises(UserError, match="width and depth"):
        build(width=None)
    if "latent_frames" in variant[1]:
        message = r"built for \(B, F, C, H, W\) = \(B, 2, 2, 4, 6\): set .* latent_frames"
    else:
        message = r"built for \(B, C, H, W\) = \(B, 2, 4, 6\)"
    for shape in ((1, 2, 6, 4), (1, 3, 2, 4, 6), (1, 2, 2, 6, 4)):
        with pytest.raises(UserError, match=message):
            build()(torch.zeros(shape), torch.zeros(1))
