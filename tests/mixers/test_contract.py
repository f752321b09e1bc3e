"""Tests of the common interface for all mixers, including a custom one: shapes, visit orders, gradients, plans."""

import functools
from dataclasses import dataclass

import jsonargparse
import pytest
import torch
from backbones import tiny

from zigma_pl.backbones import Backbone, DiT, UViT, ZigMa
from zigma_pl.core.errors import UserError
from zigma_pl.data import Digits
from zigma_pl.interpolant import Objective
from zigma_pl.mixers import (
    Branch,
    LinearAttention,
    Mamba,
    Mamba2,
    Mixer,
    MixerOptions,
    ParallelDirections,
    SelfAttention,
    UnscaledRows,
    Visit,
)
from zigma_pl.models.block import BlockConditions, ZigzagBlock
from zigma_pl.models.mixers.base import layers_of
from zigma_pl.models.taps import _tokens_of
from zigma_pl.ops.rows import inverse_order, take_rows
from zigma_pl.scan.schedule import ScanConfig
from zigma_pl.training.module import GenerativeModule

WIDTH, HEIGHT, NUM_TOKENS = 16, 3, 12
POSITIONS = torch.cartesian_prod(torch.arange(HEIGHT), torch.arange(4)).double()


class RunningMean(Mixer):
    """A custom mixer that takes its rows in visit order."""

    takes_rows_in_visit_order = True

    def __init__(self, width, scale):
        super().__init__()
        self.projection = torch.nn.Linear(width, width)
        self.scale = scale

    def forward(self, tokens, visit):
        steps = torch.arange(1, tokens.shape[1] + 1, dtype=tokens.dtype, device=tokens.device)
        positions = visit.row_positions().to(tokens.dtype).sum(-1, keepdim=True)
        return self.projection((tokens * (1 + 0.1 * positions)).cumsum(1) / steps[:, None]) * self.scale


@dataclass(frozen=True)
class OwnOptions(MixerOptions):
    """Options of a custom mixer.

    Args:
        scale: factor of the output.
    """

    scale: float = 1.0

    def build(self, width):
        return RunningMean(width, self.scale)


OPTIONS = {
    "mamba": Mamba(state_size=4),
    "mamba2": Mamba2(state_size=4, head_dim=4, num_groups=2),
    "parallel": ParallelDirections(3, state_size=4),
    "parallel mamba2": ParallelDirections(3, direction=Mamba2(state_size=4, head_dim=4)),
    "attention": SelfAttention(num_heads=2),
    "rotary": SelfAttention(num_heads=2, rotary=True),
    "linear attention": LinearAttention(num_heads=2),
    "own": OwnOptions(2.0),
}


@pytest.fixture(params=OPTIONS)
def options(request):
    return OPTIONS[request.param]


def build(options):
    torch.manual_seed(0)
    return options.build(WIDTH).double()


def draw(*shape):
    return torch.randn(*shape, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def visit_of(options, per_sample=False):
    """A visit along random orders, as many as the mixer uses, or one for each of two samples."""
    generator = torch.Generator().manual_seed(2)
    number = 2 if per_sample else options.num_orders
    if not number:
        return Visit(POSITIONS)
    orders = torch.stack([torch.randperm(NUM_TOKENS, generator=generator) for _ in range(number)]).int()
    order = orders if per_sample or number > 1 else orders[0]
    return Visit(POSITIONS, order, inverse_order(order).int())


def test_tokens_keep_their_shape_and_every_parameter_learns(options):
    mixer, tokens = build(options), draw(2, NUM_TOKENS).requires_grad_()
    mixed = mixer.mix(tokens, visit_of(options))
    assert mixed.shape == tokens.shape
    mixed.square().sum().backward()
    assert tokens.grad.any(-1).all()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in mixer.parameters())


def test_samples_do_not_mix(options):
    mixer, tokens, visit = build(options), draw(3, NUM_TOKENS), visit_of(options)
    torch.testing.assert_close(mixer.mix(tokens, visit)[1:2], mixer.mix(tokens[1:2], visit))


def test_to_visit_in_an_order_is_to_mix_tokens_that_lie_in_it(options):
    """Renumbering tokens, positions and orders only renumbers the mixed tokens."""
    mixer, tokens, visit = build(options), draw(2, NUM_TOKENS), visit_of(options)
    renumbered = torch.randperm(NUM_TOKENS)
    position = inverse_order(renumbered)
    order = None if visit.order is None else position[visit.order.long()].int()
    moved = Visit(POSITIONS[renumbered], order, None if order is None else inverse_order(order).int())
    expected = mixer.mix(tokens, visit)[:, renumbered]
    torch.testing.assert_close(mixer.mix(tokens[:, renumbered], moved), expected)


@pytest.mark.parametrize("name", ["mamba", "mamba2", "attention", "linear attention", "own"])
def test_each_sample_may_have_its_own_order(name):
    options = OPTIONS[name]
    mixer, tokens, visit = build(options), draw(2, NUM_TOKENS), visit_of(options, per_sample=True)
    mixed = mixer.mix(tokens, visit)
    for sample in range(2):
        alone = Visit(POSITIONS, visit.order[sample], visit.inverse[sample])
        torch.testing.assert_close(mixed[sample : sample + 1], mixer.mix(tokens[sample : sample + 1], alone))


def test_mixers_that_take_no_order_ignore_it(options):
    mixer, tokens, visit = build(options), draw(2, NUM_TOKENS), visit_of(options)
    if options.num_orders:
        reverse = visit.order.flip(-1)
        backwards = mixer.mix(tokens, Visit(POSITIONS, reverse, inverse_order(reverse).int()))
        assert not torch.allclose(backwards, mixer.mix(tokens, visit))
    else:
        torch.testing.assert_close(mixer.mix(tokens, visit_of(OPTIONS["mamba"])), mixer.mix(tokens, visit))


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("branch_is_arranged", [False, True])
def test_block_adds_normalises_and_mixes(options, branch_is_arranged, per_sample):
    """Norms that write and read rows in visit order give the same result as permuted rows."""
    if per_sample and options.num_orders > 1:
        pytest.skip("directions have one order each, for all samples")
    block = ZigzagBlock(WIDTH, build(options)).double()
    for parameter in (*block.modulation.parameters(), block.norm.weight):
        torch.nn.init.normal_(parameter, std=0.5)
    x, rows, gate, conditioning = draw(2, NUM_TOKENS), draw(2, NUM_TOKENS) ** 2, draw(2, 1), draw(2)
    inverse = visit_of(OPTIONS["mamba"]).inverse if branch_is_arranged else None
    visit = visit_of(options, per_sample)
    added, branch = block(x, Branch(rows, gate, inverse), BlockConditions(conditioning), visit)
    torch.testing.assert_close(added, x + gate * (rows if inverse is None else take_rows(rows, inverse)))
    shift, scale, _ = block.modulation(conditioning)[:, None].chunk(3, dim=-1)
    expected = block.mixer.mix(block.norm(added) * (1 + scale) + shift, visit)
    torch.testing.assert_close(branch.raster_rows(), expected)


def test_a_mixer_may_leave_the_factors_of_its_rows_to_the_next_norm(monkeypatch):
    block = ZigzagBlock(WIDTH, build(OwnOptions())).double()
    torch.nn.init.normal_(block.modulation[1].weight)
    x, rows, gate, conditioning = draw(2, NUM_TOKENS), draw(2, NUM_TOKENS), draw(2, 1), draw(2)
    sizes, visit = draw(2, NUM_TOKENS).abs().amax(-1, keepdim=True), visit_of(OwnOptions())
    parts = torch.cat([0.25 * sizes**2, 0.75 * sizes**2 - 1e-3], -1)

    def run():
        x_new, branch = block(x, Branch(rows, gate), BlockConditions(conditioning), visit)
        following, _ = block(x_new, branch, BlockConditions(conditioning), visit)
        return branch.rows, branch.raster_rows(), following, _tokens_of((x_new, branch)), _tokens_of(branch.mixed)

    expected, plain = run(), block.mixer.forward
    monkeypatch.setattr(
        block.mixer, "mix_unscaled", lambda tokens, visit: UnscaledRows(plain(tokens, visit) * sizes, parts, 1e-3)
    )
    for found, wanted in zip(run(), expected, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("order_shape", [(NUM_TOKENS,), (2, NUM_TOKENS)])
def test_rows_and_their_gradients_are_moved(order_shape):
    rows = draw(2, NUM_TOKENS)[..., :3].clone().requires_grad_()
    orders = torch.stack([torch.randperm(NUM_TOKENS) for _ in range(2)])
    order = orders if len(order_shape) > 1 else orders[0]
    moved = take_rows(rows, order)
    for sample in range(2):
        assert torch.equal(moved[sample], rows[sample, orders[sample if len(order_shape) > 1 else 0]])
    assert torch.equal(take_rows(moved, inverse_order(order)), rows)
    torch.autograd.gradcheck(lambda rows: take_rows(rows, order), (rows,))


# ------------------------------------------------------------------------------------------------------------- plans
HYBRID = [Mamba(), Mamba(), Mamba(), SelfAttention()]


def test_a_plan_repeats_and_its_attention_does_not_swallow_orders():
    backbone = tiny.build(ZigMa, depth=12, mixers=HYBRID)
    assert layers_of(HYBRID, 12) == HYBRID * 3
    taken = [backbone.visit(layer).order for layer in range(12)]
    assert [order is None for order in taken] == [False, False, False, True] * 3
    zigzags = [order.tolist() for order in ScanConfig().orders(2, 3)]
    assert [order.tolist() for order in taken if order is not None] == [*zigzags, zigzags[0]]


@pytest.mark.parametrize("backbone_class", [ZigMa, DiT, UViT])
@pytest.mark.parametrize("mixers", [*OPTIONS.values(), [OwnOptions(), Mamba(), SelfAttention(), ParallelDirections(2)]])
def test_any_backbone_runs_any_mixer(backbone_class, mixers):
    backbone, (x, t) = tiny.build(backbone_class, depth=4, mixers=mixers, num_classes=4), tiny.draw()
    prediction = backbone(x, t, {"class": tiny.CLASSES})
    assert prediction.shape == x.shape
    prediction.square().sum().backward()
    assert all(parameter.grad.any() for name, parameter in backbone.named_parameters() if "class_emb" not in name)


@pytest.mark.parametrize("residual", ["prenorm", "legacy"])
@pytest.mark.parametrize("mixers", [HYBRID, [OwnOptions(), Mamba()]], ids=["attention", "own"])
def test_clips_run_any_plan_in_factorized_scans(mixers, residual):
    scan = ScanConfig(video="factorized")
    backbone = tiny.build(ZigMa, depth=4, mixers=mixers, latent_frames=3, scan=scan, residual=residual)
    x, t = tiny.draw(latent_frames=3)
    assert backbone(x, t).shape == x.shape


def test_a_plan_compiles_without_graph_breaks():
    torch.compiler.reset()
    mixers = [Mamba(), SelfAttention(), OwnOptions(), Mamba2(state_size=4), LinearAttention()]
    backbone, (x, t) = tiny.build(ZigMa, depth=5, mixers=mixers, num_classes=4), tiny.draw()
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    results = []
    for network in (backbone, compiled):
        backbone.zero_grad()
        output = network(x, t, {"class": tiny.CLASSES})
        output.square().sum().backward()
        results.append([output.detach(), *(parameter.grad.clone() for parameter in backbone.parameters())])
    for eager, other in zip(*results, strict=True):
        torch.testing.assert_close(other, eager, rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        backbone = tiny.build(ZigMa, depth=4, mixers=[OwnOptions(), *HYBRID[1:]], gradient_checkpointing=checkpointing)
        backbone(*tiny.draw()).square().sum().backward()
        gradients.append([parameter.grad for parameter in backbone.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_preset_has_as_many_layers_of_a_plan_as_make_up_its_parameters():
    make = functools.partial(ZigMa, 4, 32, 32, size="B")
    with tiny.without_values():
        ours, hybrid = make(), make(mixers=HYBRID)
        assert len(ours.blocks) == len(make(mixers=[Mamba(), Mamba(state_size=32)]).blocks) == 24
        assert hybrid.num_parameters() == pytest.approx(ours.num_parameters(), rel=0.03)
        assert len(make(mixers=HYBRID, depth=24).blocks) == 24


def test_uvit_masks_captions_or_refuses():
    assert tiny.build(UViT, caption_dim=5)
    with pytest.raises(UserError, match="mask"):
        tiny.build(UViT, caption_dim=5, mixers=[SelfAttention(), Mamba()])
    with pytest.raises(UserError, match=r"scan\.video"):
        tiny.build(UViT, latent_frames=2, mixers=Mamba(), scan=ScanConfig(video="factorized"))


# ----------------------------------------------------------------------------------------------------------- options
def parse(*arguments):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Backbone, "backbone")
    size = {"in_channels": 2, "latent_height": 4, "latent_width": 6, "patch_size": 2, "width": 16, "depth": 2}
    common = [f"--backbone.init_args.{name}={value}" for name, value in size.items()]
    options = [argument.replace("--mixers", "--backbone.init_args.mixers") for argument in arguments]
    parsed = parser.parse_args(["--backbone=zigma_pl.backbones.ZigMa", *common, *options])
    return parser.instantiate(parsed).backbone


@pytest.mark.parametrize(
    ("arguments", "built"),
    [
        ([], [Mamba(), Mamba()]),
        (["--mixers=zigma_pl.mixers.SelfAttention"], [SelfAttention(), SelfAttention()]),
        (["--mixers=zigma_pl.mixers.Mamba", "--mixers.init_args.state_size=8"], [Mamba(8), Mamba(8)]),
        (["--mixers=[zigma_pl.mixers.Mamba,{class_path: zigma_pl.mixers.SelfAttention, init_args: {rotary: true}}]"],
         [Mamba(), SelfAttention(rotary=True)]),
        ([f"--mixers={__name__}.OwnOptions", "--mixers.init_args.scale=3"], [OwnOptions(3.0), OwnOptions(3.0)]),
    ],
)  # fmt: skip
def test_mixers_are_named_by_class_path(arguments, built):
    backbone = parse(*arguments)
    assert [type(block.mixer) for block in backbone.blocks] == [type(options.build(16)) for options in built]
    entries = backbone.config["mixers"]
    entries = entries if isinstance(entries, list) else [entries]
    assert [entry["init_args"] for entry in entries] == [vars(options) for options in built[: len(entries)]]


def test_a_misspelt_option_of_a_mixer_is_refused():
    with pytest.raises(jsonargparse.ArgumentError):
        parse("--mixers=zigma_pl.mixers.Mamba", "--mixers.init_args.state_sise=8")


def test_a_config_builds_the_same_plan_again_by_public_paths():
    backbone = tiny.build(ZigMa, mixers=HYBRID)
    assert [entry["class_path"] for entry in backbone.config["mixers"][2:]] == [
        "zigma_pl.mixers.Mamba",
        "zigma_pl.mixers.SelfAttention",
    ]
    again = ZigMa.from_config(backbone.config)
    assert again.config == backbone.config
    again.load_state_dict(backbone.state_dict())
    assert torch.equal(again(*tiny.draw()), backbone(*tiny.draw()))


@pytest.mark.parametrize(
    "class_path",
    [
        "os.system",
        "zigma_pl.core.files.os.system",
        "zigma_pl.backbones.ZigMa",
        "zigma_pl.mixers.Nothing",
        "Nothing",
        None,
    ],
)
def test_a_config_builds_nothing_but_mixers_of_this_package(class_path):
    config = tiny.build(ZigMa).config | {"mixers": {"class_path": class_path, "init_args": {}}}
    with pytest.raises(UserError, match=r"not allowed|MixerOptions"):
        ZigMa.from_config(config)


# ---------------------------------------------------------------------------------------------------------- training
def test_a_hybrid_learns_the_digits():
    torch.manual_seed(0)
    backbone = ZigMa(1, 8, 8, patch_size=2, width=32, depth=4, mixers=HYBRID, num_classes=10)
    data, module = Digits(batch_size=32, num_workers=0), GenerativeModule(backbone, Objective())
    data.setup("fit")
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    losses = []
    for raw, _ in zip(data.train_dataloader(), range(30), strict=False):
        loss = module.training_loss(data.encode(raw, "cpu"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
