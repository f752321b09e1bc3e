"""What every backbone promises, asked of all of them: a backbone in `interop.folder.BACKBONES` needs no test here."""

import functools

import pytest
import torch
from backbones import tiny

import zigma_pl
from zigma_pl.backbones import ParallelMamba, UViT, ZigMa
from zigma_pl.errors import UserError
from zigma_pl.interop.folder import BACKBONES
from zigma_pl.scan.schedule import ScanConfig

VARIANTS = {
    **BACKBONES,
    "ZigMa, legacy": functools.partial(ZigMa, residual="legacy"),
    "ParallelMamba, three orders": functools.partial(ParallelMamba, scan=ScanConfig("hilbert", num_orders=3)),
    "UViT, no convolution": functools.partial(UViT, final_convolution=False),
    "UViT, even depth": functools.partial(UViT, depth=4),
}


@pytest.fixture(params=VARIANTS)
def build(request):
    """Return what builds a tiny backbone of one kind."""
    variant = VARIANTS[request.param]
    own = getattr(variant, "keywords", {})
    return lambda randomise=True, **options: tiny.build(getattr(variant, "func", variant), randomise, **(own | options))


@pytest.mark.parametrize("kind", tiny.CONDITIONS)
def test_prediction_starts_at_zero_and_every_parameter_learns(build, kind):
    options, condition = tiny.CONDITIONS[kind]
    fresh = build(randomise=False, **options)
    assert fresh(*tiny.draw(), condition).eq(0).all()
    fresh(*tiny.draw(), condition).sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in fresh.parameters() if p.ndim > 1)  # zero, but not stuck
    backbone = build(**options)
    dropped = torch.tensor([False, True, False]) if condition is not None else None
    prediction = backbone(*tiny.draw(), condition, None, dropped)
    assert prediction.shape == (3, 2, 4, 6)
    prediction.square().sum().backward()
    parameters = dict(backbone.named_parameters())
    assert not [name for name, parameter in parameters.items() if parameter.grad is None or not parameter.grad.any()]


@pytest.mark.parametrize("kind", tiny.CONDITIONS)
def test_samples_do_not_mix_and_time_matters(build, kind):
    options, condition = tiny.CONDITIONS[kind]
    backbone, (x, t) = build(**options), tiny.draw()
    together = backbone(x, t, condition)
    alone = backbone(x[1:2], t[1:2], None if condition is None else condition[1:2])
    torch.testing.assert_close(together[1:2], alone)
    assert not torch.allclose(backbone(x, 1 - t, condition), together)


@pytest.mark.parametrize("kind", ["classes", "captions"])
def test_dropped_condition_is_no_condition(build, kind):
    options, condition = tiny.CONDITIONS[kind]
    backbone, (x, t) = build(**options), tiny.draw()
    everything = torch.ones(3, dtype=torch.bool)
    torch.testing.assert_close(backbone(x, t, condition, None, everything), backbone(x, t))
    mixed = backbone(x, t, condition, None, torch.tensor([True, False, True]))
    torch.testing.assert_close(mixed[1], backbone(x, t, condition)[1])
    torch.testing.assert_close(mixed[2], backbone(x, t)[2])
    assert not torch.allclose(backbone(x, t, condition), backbone(x, t))


def test_masked_caption_tokens_change_nothing(build):
    backbone, (x, t) = build(caption_dim=5), tiny.draw()
    condition = tiny.CONDITIONS["captions"][1]
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[:, 4:] = False
    torch.testing.assert_close(backbone(x, t, condition, mask), backbone(x, t, condition[:, :4]))
    dropped = torch.tensor([False, True, False])
    masked_and_dropped = backbone(x, t, condition, mask, dropped)
    torch.testing.assert_close(masked_and_dropped, backbone(x, t, condition[:, :4], None, dropped))


def test_gradient_checkpointing_changes_nothing(build):
    gradients, num_kept = [], []
    for backbone in (build(), build(gradient_checkpointing=True)):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor, kept=kept: kept.append(0) or tensor, lambda t: t):
            loss = backbone(*tiny.draw()).square().sum()
        loss.backward()
        num_kept.append(len(kept))
        gradients.append([parameter.grad for parameter in backbone.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert num_kept[1] < num_kept[0]


def test_bf16_autocast_stays_close_to_float32(build):
    backbone = build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = backbone(*tiny.draw())
    high = backbone(*tiny.draw())
    assert torch.linalg.norm(low.float() - high) < 0.05 * torch.linalg.norm(high)


@pytest.mark.parametrize("kind", tiny.CONDITIONS)
def test_folder_gives_the_same_backbone_back(build, kind, tmp_path):
    options, condition = tiny.CONDITIONS[kind]
    backbone = build(**options, position_embedding="cosine")
    loaded = zigma_pl.from_pretrained(zigma_pl.save_pretrained(backbone, tmp_path))
    assert type(loaded) is type(backbone)
    assert loaded.config == backbone.config
    with torch.no_grad():
        assert torch.equal(loaded(*tiny.draw(), condition), backbone(*tiny.draw(), condition))


@pytest.mark.parametrize("name", BACKBONES)
def test_compiles_without_graph_breaks(name):
    backbone, (x, t) = tiny.build(BACKBONES[name], caption_dim=5, depth=3 if name == "UViT" else 1), tiny.draw()
    condition, dropped = tiny.CONDITIONS["captions"][1], torch.tensor([False, True, False])
    compiled = torch.compile(backbone, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, t, condition, None, dropped), backbone(x, t, condition, None, dropped))


@pytest.mark.parametrize(
    ("size", "positions"),
    [("S", "cosine"), ("B", "cosine"), ("B", "learnable"), ("L", "learnable"), ("XL", "learnable")],
)
@pytest.mark.parametrize("name", sorted(BACKBONES.keys() - {"ZigMa"}))
def test_named_sizes_have_as_many_parameters_as_zigma(name, size, positions):
    with torch.device("meta"):
        ours, zigma = (c(4, 32, 32, size=size, position_embedding=positions) for c in (BACKBONES[name], ZigMa))
    assert ours.num_parameters() == pytest.approx(zigma.num_parameters(), rel=0.03)


@pytest.mark.parametrize(
    ("options", "condition", "message"),
    [
        ({}, torch.zeros(3, dtype=torch.int64), "unconditional"),
        ({"num_classes": 4}, torch.zeros(3), "class ids"),
        ({"caption_dim": 5}, torch.zeros(3, 7, 6), "caption_dim"),
        ({"num_classes": 4, "null_condition": False}, None, "no null condition"),
    ],
)
def test_wrong_conditions_are_explained(build, options, condition, message):
    with pytest.raises(UserError, match=message):
        build(**options)(*tiny.draw(), condition)


def test_wrong_options_are_explained(build):
    with pytest.raises(UserError, match="classes or captions"):
        build(num_classes=2, caption_dim=3)
    with pytest.raises(UserError, match="needs a size"):
        build(width=None)
    with pytest.raises(UserError, match=r"built for \(B, C, H, W\) = \(B, 2, 4, 6\)"):
        build()(torch.zeros(1, 2, 6, 4), torch.zeros(1))
