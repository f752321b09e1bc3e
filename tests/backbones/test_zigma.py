import pytest
import torch

from zigma_pl.backbones import ZigMa
from zigma_pl.backbones.zigma import SIZES
from zigma_pl.errors import UserError
from zigma_pl.scan.paths import visit_order
from zigma_pl.scan.schedule import ScanConfig


def build(randomise=True, **options):
    torch.manual_seed(0)
    defaults = {"in_channels": 2, "latent_height": 4, "latent_width": 6, "patch_size": 2, "width": 16, "depth": 2}
    backbone = ZigMa(**(defaults | options))
    if randomise:
        for parameter in backbone.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return backbone


def draw(batch_size=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch_size, 2, 4, 6, generator=generator), torch.rand(batch_size, generator=generator)


CONDITIONS = {
    "none": ({}, None),
    "classes": ({"num_classes": 4}, torch.tensor([0, 3, 1])),
    "captions": ({"caption_dim": 5}, torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(2))),
}


@pytest.mark.parametrize("residual", ["prenorm", "legacy"])
@pytest.mark.parametrize("kind", CONDITIONS)
def test_output_starts_at_zero_and_every_parameter_learns(kind, residual):
    options, condition = CONDITIONS[kind]
    assert (build(randomise=False, residual=residual, **options)(*draw(), condition) == 0).all()
    backbone = build(residual=residual, **options)
    dropped = torch.tensor([False, True, False]) if condition is not None else None
    backbone(*draw(), condition, None, dropped).square().sum().backward()
    still = [
        name for name, parameter in backbone.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert not still


def test_layers_cycle_through_the_orders_of_the_token_grid():
    backbone = build(depth=5, scan=ScanConfig(num_orders=3))
    for layer in range(5):
        assert backbone.visit_order(layer).tolist() == visit_order("zigzag", 2, 3, index=layer % 3).tolist()
        assert backbone.visit_order(layer).dtype == torch.int32
    assert len([name for name, _ in backbone.named_buffers() if name.startswith("visit_order")]) == 3


def test_scheme_costs_no_parameter():
    counts = {build(scan=ScanConfig(scheme=s, num_orders=k)).num_parameters() for s, k in [("sweep", 1), ("zigzag", 8)]}
    assert len(counts) == 1


def test_order_matters():
    x, t = draw()
    sweep, zigzag = (build(scan=ScanConfig(scheme=s, num_orders=1)) for s in ("sweep", "zigzag"))
    assert not torch.allclose(sweep(x, t), zigzag(x, t))


@pytest.mark.parametrize("kind", ["classes", "captions"])
def test_dropped_condition_is_no_condition(kind):
    options, condition = CONDITIONS[kind]
    backbone = build(**options)
    x, t = draw()
    everything = torch.ones(3, dtype=torch.bool)
    torch.testing.assert_close(backbone(x, t, condition, None, everything), backbone(x, t))
    mixed = backbone(x, t, condition, None, torch.tensor([True, False, True]))
    torch.testing.assert_close(mixed[1], backbone(x, t, condition)[1])
    torch.testing.assert_close(mixed[2], backbone(x, t)[2])
    assert not torch.allclose(backbone(x, t, condition), backbone(x, t))


def test_masked_caption_tokens_change_nothing():
    backbone = build(caption_dim=5)
    x, t = draw()
    condition = CONDITIONS["captions"][1]
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[:, 4:] = False
    torch.testing.assert_close(backbone(x, t, condition, mask), backbone(x, t, condition[:, :4]))


def test_gradient_checkpointing_changes_nothing():
    plain, checkpointed = build(), build(gradient_checkpointing=True)
    gradients = []
    for backbone in (plain, checkpointed):
        backbone(*draw()).square().sum().backward()
        gradients.append([parameter.grad for parameter in backbone.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_bf16_autocast_stays_close_to_float32():
    backbone = build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = backbone(*draw())
    high = backbone(*draw())
    assert torch.linalg.norm(low.float() - high) < 0.05 * torch.linalg.norm(high)


def test_named_sizes_count_as_their_transformer_namesakes():
    millions = {}
    for size in SIZES:
        with torch.device("meta"):
            millions[size] = ZigMa(4, 32, 32, patch_size=2, size=size).num_parameters() / 1e6
    # DiT-S, B, L, XL have 33, 130, 458 and 675 million.
    for size, expected in {"S": 33, "B": 130, "L": 458, "XL": 675}.items():
        assert millions[size] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("options", "condition", "message"),
    [
        ({}, torch.zeros(3, dtype=torch.int64), "unconditional"),
        ({"num_classes": 4}, torch.zeros(3), "class ids"),
        ({"caption_dim": 5}, torch.zeros(3, 7, 6), "caption_dim"),
        ({"num_classes": 4, "null_condition": False}, None, "no null condition"),
    ],
)
def test_wrong_conditions_are_explained(options, condition, message):
    with pytest.raises(UserError, match=message):
        build(**options)(*draw(), condition)


def test_wrong_options_are_explained():
    with pytest.raises(UserError, match="classes or captions"):
        build(num_classes=2, caption_dim=3)
    with pytest.raises(UserError, match="needs a size"):
        build(width=None)
    with pytest.raises(UserError, match=r"built for \(B, C, H, W\) = \(B, 2, 4, 6\)"):
        build()(torch.zeros(1, 2, 6, 4), torch.zeros(1))


def test_compiled_without_graph_breaks_agrees_with_eager():
    backbone = build(num_classes=4, depth=1)
    x, t = draw()
    compiled = torch.compile(backbone, fullgraph=True)
    results = []
    for network in (backbone, compiled):
        backbone.zero_grad()
        out = network(x, t, torch.tensor([0, 3, 1]))
        out.square().sum().backward()
        results.append([out.detach(), *(parameter.grad.clone() for parameter in backbone.parameters())])
    for eager, fused in zip(*results, strict=True):
        assert torch.linalg.norm(fused - eager) <= 1e-4 * torch.linalg.norm(eager)
