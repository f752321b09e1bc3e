"""Tests of the common interface for all conditioners."""

from dataclasses import dataclass

import jsonargparse
import pytest
import torch
from backbones import tiny

import zigma_pl
from zigma_pl.backbones import Backbone, DiT, UViT, ZigMa
from zigma_pl.conditioners import (
    Caption,
    CaptionConditioner,
    ClassConditioner,
    ClassLabel,
    Conditioner,
    ConditionerOptions,
    Entry,
    Map,
    Sizes,
)
from zigma_pl.core.batch import Batch, Condition
from zigma_pl.core.errors import UserError
from zigma_pl.data import Digits
from zigma_pl.interpolant import Objective
from zigma_pl.models.conditioners.base import joined_tokens
from zigma_pl.models.conditioners.caption import masked_mean
from zigma_pl.samplers import Guidance, ODESampler
from zigma_pl.training.module import GenerativeModule

WIDTH = 8
CPU = torch.device("cpu")
SIZES = Sizes(WIDTH, (2, 4, 6), num_classes=4, caption_dim=6)


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class PoseConditioner(Conditioner):
    """A custom conditioner: the angles of a pose (B, 2) modulate the blocks."""

    def __init__(self, width, scale):
        super().__init__(has_null=True, dropout=0.25)
        self.projection = torch.nn.Linear(2, width)
        self.scale = scale

    def forward(self, condition, dropped=None):
        pose = condition.values if dropped is None else condition.values.masked_fill(dropped[:, None], 0.0)
        return Entry(modulation=self.scale * self.projection(pose))

    def check(self, name, condition, batch_size):
        if condition.values.shape != (batch_size, 2):
            raise UserError(f"condition {name}: expected (B, 2)")

    def placeholder(self, batch_size, device):
        return Condition(torch.zeros(batch_size, 2, device=device))


@dataclass(frozen=True)
class Pose(ConditionerOptions):
    """Options of a custom conditioner.

    Args:
        scale: factor of the embedding.
    """

    scale: float = 1.0

    def build(self, sizes):
        return PoseConditioner(sizes.width, self.scale)


OPTIONS = {"class": ClassLabel(), "caption": Caption(), "edges": Map(num_channels=3), "pose": Pose()}
VALUES = {"class": torch.tensor([1, 3]), "caption": random(2, 3, 6), "edges": random(2, 3, 4, 6), "pose": random(2, 2)}


@pytest.fixture(params=OPTIONS)
def name(request):
    return request.param


def of_sample(entry, index):
    return [part[index] for part in (entry.modulation, entry.tokens, entry.channels) if part is not None]


def test_a_dropped_sample_is_that_of_a_dropped_placeholder(name):
    conditioner, condition = OPTIONS[name].build(SIZES), Condition(VALUES[name])
    dropped = conditioner(condition, torch.tensor([False, True]))
    plain, nothing = conditioner(condition), conditioner(conditioner.placeholder(2, CPU), torch.tensor([True, True]))
    for found, expected in zip(of_sample(dropped, 0), of_sample(plain, 0), strict=True):
        torch.testing.assert_close(found, expected)
    for found, expected, other in zip(*(of_sample(entry, 1) for entry in (dropped, nothing, plain)), strict=True):
        torch.testing.assert_close(found[:1], expected[:1])
        assert not torch.allclose(found, other)


def test_a_placeholder_is_a_condition_that_is_taken(name):
    conditioner = OPTIONS[name].build(SIZES)
    conditioner.check(name, conditioner.placeholder(3, CPU), 3)


def test_another_batch_size_or_shape_is_refused(name):
    conditioner = OPTIONS[name].build(SIZES)
    for values, batch_size in ((VALUES[name], 3), (VALUES[name][..., None], 2), (VALUES[name].double()[..., :1], 2)):
        with pytest.raises(UserError, match=name):
            conditioner.check(name, Condition(values), batch_size)


@pytest.mark.parametrize(("options_class", "num_parameters"), [(ClassLabel, WIDTH), (Caption, 6)])
def test_without_a_null_entry_there_is_no_parameter_for_it(options_class, num_parameters):
    built = [options_class(null=null).build(SIZES) for null in (True, False)]
    sizes = [sum(p.numel() for p in conditioner.parameters()) for conditioner in built]
    assert sizes[0] - sizes[1] == num_parameters
    assert [conditioner.has_null for conditioner in built] == [True, False]


@pytest.mark.parametrize(
    "options",
    [
        *(ClassLabel(dropout=2.0), ClassLabel(dropout=0.1, null=False), ClassLabel(num_classes=0)),
        *(Caption(dropout=-1.0), Caption(caption_dim=10**9), Map(dropout=float("nan"))),
    ],
)
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(UserError):
        options.build(SIZES)


@pytest.mark.parametrize("options", [ClassLabel(), Caption()])
def test_without_classes_or_captions_in_the_data_their_number_is_asked_for(options):
    with pytest.raises(UserError, match=r"set num_classes|set caption_dim"):
        options.build(Sizes(WIDTH, (2, 4, 6), None, None))


def test_dropped_classes_become_the_null_class():
    conditioner = ClassConditioner(4, 8)
    out = conditioner(Condition(torch.tensor([1, 2])), torch.tensor([False, True])).modulation
    assert torch.equal(out[0], conditioner.table.weight[1])
    assert torch.equal(out[1], conditioner.table.weight[4])


def test_dropped_captions_do_not_depend_on_features_or_mask():
    conditioner = CaptionConditioner(6, 8)
    mask = torch.tensor([[True, False, False], [True, True, False]])
    dropped = torch.tensor([True, False])
    one, two = (conditioner(Condition(torch.randn(2, 3, 6), mask), dropped) for _ in range(2))
    assert torch.equal(one.tokens[0], two.tokens[0])
    assert torch.equal(one.mask, torch.tensor([[True, True, True], [True, True, False]]))
    assert torch.equal(one.mask, two.mask)
    assert not torch.equal(one.tokens[1], two.tokens[1])


def test_masked_mean_counts_only_what_is_unmasked():
    tokens = torch.randn(2, 3, 4)
    mask = torch.tensor([[True, True, False], [False, False, True]])
    expected = torch.stack([tokens[0, :2].mean(0), tokens[1, 2]])
    torch.testing.assert_close(masked_mean(tokens, mask), expected)
    torch.testing.assert_close(masked_mean(tokens, None), tokens.mean(1))


def test_tokens_of_several_conditions_are_one_sequence():
    mask = torch.tensor([[True, False]])
    tokens, joined = joined_tokens(
        [
            Entry(tokens=torch.zeros(1, 2, 4), mask=mask),
            Entry(modulation=torch.zeros(1, 4)),
            Entry(tokens=torch.ones(1, 1, 4)),
        ]
    )
    assert tokens[0, :, 0].tolist() == [0, 0, 1]
    assert joined.tolist() == [[True, False, True]]
    assert joined_tokens([Entry(modulation=torch.zeros(1, 4))]) == (None, None)


# ---------------------------------------------------------------------------------------------------- in a backbone
EDGES = Condition(random(3, 1, 4, 6))
CONDITIONS = {"class": tiny.CLASSES, "caption": tiny.CAPTIONS, "edges": EDGES, "pose": Condition(random(3, 2))}
ALL = {"num_classes": 4, "caption_dim": 5, "conditioners": {"edges": Map(dropout=0.5), "pose": Pose()}}


def batch_of(conditions):
    return Batch(tiny.draw()[0], torch.arange(3), conditions)


@pytest.mark.parametrize("backbone_class", [ZigMa, DiT, UViT])
@pytest.mark.parametrize("latent_frames", [None, 2])
def test_a_backbone_trains_and_samples_on_all_its_conditions(backbone_class, latent_frames):
    backbone = tiny.build(backbone_class, latent_frames=latent_frames, **ALL)
    x_t, t = tiny.draw(latent_frames=latent_frames)
    maps = EDGES.values if latent_frames is None else EDGES.values[:, None].expand(-1, latent_frames, -1, -1, -1)
    conditions = CONDITIONS | {"edges": Condition(maps.contiguous())}
    module = GenerativeModule(backbone, Objective(), ODESampler("euler", 2), Guidance(2.0, drop=["edges"])).train()
    module.training_loss(Batch(x_t, torch.arange(3), conditions)).backward()
    assert not [name for name, parameter in module.named_parameters() if parameter.grad is None]
    assert backbone(x_t, t, conditions).shape == x_t.shape  # the output has the same channels as without the map
    assert module.eval().sample(Batch(None, torch.arange(3), conditions)).latents.shape == x_t.shape
    with torch.no_grad():
        plain = backbone(x_t, t, conditions)
        for name in conditions:
            assert not torch.allclose(
                backbone(
                    x_t, t, {**conditions, name: conditions[name]._replace(values=conditions[name].values.flip(0))}
                ),
                plain,
            )


def test_guidance_without_the_map_has_the_class_on_both_sides():
    backbone = tiny.build(ZigMa, num_classes=4, conditioners={"edges": Map()})
    conditions = {"class": tiny.CLASSES, "edges": EDGES}
    x_t, t = tiny.draw()
    with torch.no_grad():
        guided = zigma_pl.samplers.guided_network(backbone, conditions, Guidance(3.0, drop=["edges"]))(x_t, t)
        full, null = backbone(x_t, t, conditions), backbone(x_t, t, {"class": tiny.CLASSES})
    torch.testing.assert_close(guided, null + 3.0 * (full - null))


def test_a_conditioner_of_that_name_takes_the_place_of_the_plain_one():
    backbone = tiny.build(ZigMa, num_classes=4, conditioners={"class": ClassLabel(dropout=0.3)})
    assert list(backbone.conditioners) == ["class"]
    assert (backbone.num_classes, backbone.conditioners["class"].dropout) == (4, 0.3)


def test_weights_and_options_come_back_from_a_folder(tmp_path):
    conditioners = {"class": ClassLabel(dropout=0.25), "edges": Map(), "scene": Caption(5)}
    backbone = tiny.build(ZigMa, num_classes=4, conditioners=conditioners)
    loaded = zigma_pl.load_backbone(zigma_pl.save_pretrained(backbone, tmp_path))
    assert loaded.config == backbone.config
    conditions = {"class": tiny.CLASSES, "edges": EDGES, "scene": tiny.CAPTIONS}
    with torch.no_grad():
        assert torch.equal(loaded(*tiny.draw(), conditions), backbone(*tiny.draw(), conditions))


def test_options_come_from_the_command_line():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Backbone, "backbone")
    options = {"in_channels": 2, "latent_height": 4, "latent_width": 6, "width": 16, "depth": 2, "num_classes": 4}
    edges = {"class_path": "zigma_pl.conditioners.Map", "init_args": {"num_channels": 3}}
    given = {"class_path": "zigma_pl.backbones.DiT", "init_args": {**options, "conditioners": {"edges": edges}}}
    backbone = parser.instantiate(parser.parse_object({"backbone": given})).backbone
    assert list(backbone.conditioners) == ["class", "edges"]
    assert backbone.conditioners["edges"].map_shape == (3, 4, 6)


@pytest.mark.parametrize("name", ["a.b", "keys", ""])
def test_a_name_that_no_module_can_have_is_refused(name):
    with pytest.raises(UserError, match="not a valid name"):
        tiny.build(ZigMa, conditioners={name: Map()})


class DigitsWithOutlines(Digits):
    """A custom data set with a map computed from the images."""

    def encode_conditions(self, raw, device):
        conditions = super().encode_conditions(raw, device)
        if raw.images is not None:
            conditions["outline"] = Condition((raw.images > 127).float())
        return conditions


def test_a_data_module_gives_conditions_of_its_own():
    data = DigitsWithOutlines(batch_size=3)
    data.setup("fit")
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    options = {"in_channels": 1, "latent_height": 8, "latent_width": 8, "num_classes": 10}
    module = GenerativeModule(tiny.build(ZigMa, **options, conditioners={"outline": Map()}), Objective()).train()
    module.training_loss(batch).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    held_out = data.encode_conditions(data.held_out_conditions("validation", range(3)), "cpu")
    assert torch.equal(held_out["outline"].values, batch.conditions["outline"].values)


def test_a_condition_that_the_data_do_not_give_is_named():
    module = GenerativeModule(tiny.build(ZigMa, conditioners={"edges": Map()}), Objective()).train()
    with pytest.raises(UserError, match=r"'edges'.*: class"):
        module.training_loss(batch_of({"class": tiny.CLASSES}))


def test_each_condition_is_dropped_at_its_own_rate_and_all_at_the_joint_one():
    conditioners = {"class": ClassLabel(dropout=0.5), "edges": Map()}
    module = GenerativeModule(
        tiny.build(ZigMa, num_classes=4, conditioners=conditioners), Objective(), condition_dropout=0.2
    )
    dropped = module._dropped(zigma_pl.core.randomness.sample_generators(0, "train", torch.arange(4000)))
    assert dropped["edges"].float().mean().item() == pytest.approx(0.2, abs=0.03)
    assert dropped["class"].float().mean().item() == pytest.approx(1 - 0.8 * 0.5, abs=0.03)
    assert dropped["class"][dropped["edges"]].all()


def test_a_rate_of_its_own_leaves_the_joint_decision_as_it_was():
    generators = [zigma_pl.core.randomness.sample_generators(0, "train", torch.arange(50)) for _ in range(2)]
    own, plain = (
        GenerativeModule(tiny.build(ZigMa, num_classes=4, conditioners=c), Objective(), condition_dropout=0.3)
        for c in ({"edges": Map(dropout=0.5)}, None)
    )
    assert torch.equal(own._dropped(generators[0])["class"], plain._dropped(generators[1])["class"])
