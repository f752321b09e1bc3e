import copy

import lightning as L
import pytest
import torch
from losses.synthetic_teacher import RandomPatches
from torch.nn.functional import cosine_similarity, normalize

from zigma_pl.backbones import DiT, UViT, ZigMa
from zigma_pl.core.errors import UserError
from zigma_pl.data import Batch, Digits
from zigma_pl.interop.training_checkpoint import PREFIX
from zigma_pl.interpolant import LossInputs, Objective
from zigma_pl.losses import REPA
from zigma_pl.models.taps import tapped
from zigma_pl.training.callbacks.ema import EMA
from zigma_pl.training.module import GenerativeModule

WIDTH, DEPTH = 16, 4


def build(teacher=None, backbone_class=ZigMa, side=8, depth=DEPTH, **options):
    torch.manual_seed(0)
    backbone = backbone_class(1, side, side, patch_size=2, width=WIDTH, depth=depth)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return GenerativeModule(
        backbone, Objective(), loss_terms={"repa": REPA(teacher or RandomPatches(), hidden_width=8, **options)}
    )


def batch(side=8):
    images = torch.randint(256, (3, 1, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Batch(images / 127.5 - 1, torch.arange(3), {}, images)


def train(folder, module, num_steps, *callbacks, **options):
    trainer = L.Trainer(
        default_root_dir=folder, max_steps=num_steps, max_epochs=-1, accelerator="cpu", callbacks=list(callbacks),
        logger=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, log_every_n_steps=1, **options,
    )  # fmt: skip
    trainer.fit(module, datamodule=Digits(batch_size=4), weights_only=True)
    return trainer


def term_of(module, images, tokens):
    inputs = LossInputs(images, torch.zeros(3), None, module.objective, {module.loss_terms["repa"].layers[0]: tokens})
    return module.loss_terms["repa"](inputs)


def test_the_term_by_hand():
    module, images = build(), batch()
    repa = module.loss_terms["repa"]
    features = repa.teacher.network(images.images.expand(-1, 3, -1, -1) / 127.5 - 1).flatten(2).mT  # (3, 16, 6)
    tokens = torch.randn(3, 16, WIDTH)
    expected = 1 - cosine_similarity(repa.head(tokens), features, dim=-1).mean(1)
    torch.testing.assert_close(term_of(module, images, tokens), expected)


@pytest.mark.parametrize(("predicted", "value"), [(1, 0.0), (-1, 2.0)])
def test_equal_features_cost_nothing_and_opposite_ones_two(predicted, value):
    module, images = build(), batch()
    repa = module.loss_terms["repa"]
    targets = repa.targets(images.images)
    repa.head = torch.nn.Identity()
    torch.testing.assert_close(term_of(module, images, 3 * predicted * targets), torch.full((3,), value))


def test_features_are_resampled_to_the_token_grid():
    """Of a map that is linear along both axes, which averaging and interpolation keep."""
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    repa = build().loss_terms["repa"]
    repa.teacher = lambda images: torch.stack([rows, columns]).repeat(len(images), 3, 1, 1)
    targets = repa.targets(batch().images).unflatten(1, (4, 4))
    torch.testing.assert_close(targets[0, 1:3, 1, 0], torch.tensor([2.5, 4.5]))
    torch.testing.assert_close(targets[0, 1, 1:3, 1], torch.tensor([2.5, 4.5]))


@pytest.mark.parametrize(
    ("depth", "layer", "expected"), [(4, None, 1), (24, None, 7), (12, None, 3), (1, None, 0), (4, 4, 3)]
)
def test_the_tap_is_after_a_third_of_the_blocks(depth, layer, expected):
    assert build(depth=depth, layer=layer).loss_terms["repa"].layers == (f"blocks.{expected}",)


@pytest.mark.parametrize("backbone_class", [ZigMa, DiT, UViT])
def test_gradients_reach_the_blocks_before_the_tap_and_no_others(backbone_class):
    module = build(backbone_class=backbone_class, layer=2)
    repa = module.loss_terms["repa"]
    with tapped(module.backbone, repa.layers) as features:
        evaluation = module._evaluate(batch(), torch.full((3,), 0.5), [torch.Generator()] * 3)
    repa(LossInputs(batch(), torch.full((3,), 0.5), evaluation, module.objective, features)).mean().backward()
    reached = [any(p.grad is not None and bool(p.grad.any()) for p in b.parameters()) for b in module.backbone.blocks]
    assert reached == [True, True, False, False]
    assert all(parameter.grad is not None for parameter in repa.parameters())
    assert all(parameter.grad is None for parameter in repa.teacher.network.parameters())


def test_the_tokens_of_uvit_are_those_of_the_patches():
    module = build(backbone_class=UViT)
    prefixed = torch.randn(3, 1 + 16, WIDTH)
    assert torch.equal(term_of(module, batch(), prefixed), term_of(module, batch(), prefixed[:, 1:]))


def test_the_loss_contains_the_term_with_its_weight_until_the_last_step(tmp_path):
    total, (values,) = (module := build(weight=0.7)).training_loss(batch()), module._terms
    torch.testing.assert_close(total, values["interpolant"] + 0.7 * values["repa"])
    plain = GenerativeModule(module.backbone, Objective()).training_loss(batch())
    torch.testing.assert_close(values["interpolant"], plain)
    assert REPA(RandomPatches()).weight == 0.5

    module, heads = build(end_step=2), []

    class Keep(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            heads.append(pl_module.loss_terms["repa"].head[0].weight.clone())

    train(tmp_path, module, 4, Keep(), enable_checkpointing=False)
    assert not torch.equal(heads[0], heads[1])
    assert torch.equal(heads[1], heads[2])
    assert torch.equal(heads[2], heads[3])


def test_alignment_is_learned(tmp_path):
    """The error of the alignment falls, and without the term it does not."""

    def error(weight):
        module = build(weight=weight)
        module.optimizer = lambda parameters: torch.optim.AdamW(parameters, lr=1e-2)
        train(tmp_path, module, 30, enable_checkpointing=False)
        return float(module.trainer.logged_metrics["train/terms/repa"])

    assert error(1.0) < 0.6 < 0.9 < error(0.0)


def test_the_teacher_is_neither_trained_nor_saved_nor_averaged_nor_exported(tmp_path):
    module, ema = build(), EMA(decay=0.5)
    teacher = module.loss_terms["repa"].teacher
    before = copy.deepcopy(teacher.network.state_dict())
    module.train()
    train(tmp_path, module, 2, ema, enable_checkpointing=False)
    assert not teacher.network.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.network.state_dict().items())
    names = {name for name in module.state_dict() if "repa" in name}
    assert names == {f"loss_terms.repa.head.{layer}.{kind}" for layer in (0, 2, 4) for kind in ("weight", "bias")}
    assert not any(name.startswith(PREFIX) for name in names)
    optimised = {id(p) for group in module.optimizers().param_groups for p in group["params"]}
    assert not optimised & {id(parameter) for parameter in teacher.network.parameters()}
    assert ema._average_model.module.loss_terms["repa"].teacher is teacher


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    saving = {"save_last": True, "every_n_train_steps": 2, "save_top_k": -1, "filename": "{step}"}

    def fit(folder, num_steps, ckpt_path=None):
        callback = L.pytorch.callbacks.ModelCheckpoint(folder, **saving)
        trainer = L.Trainer(
            default_root_dir=folder, max_steps=num_steps, max_epochs=-1, accelerator="cpu", callbacks=[callback],
            logger=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        )  # fmt: skip
        module = build(end_step=3)
        data = Digits(batch_size=4)
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        return module.state_dict()

    whole = fit(tmp_path / "whole", 4)
    resumed = fit(tmp_path / "resumed", 4, tmp_path / "whole" / "step=2.ckpt")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_teacher_has_its_own_precision(bfloat16):
    teacher = RandomPatches(bfloat16=bfloat16)
    images, seen = batch().images, []
    teacher.network[0].register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    alone = teacher(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(teacher(images), alone)
    assert alone.dtype == torch.float32
    assert seen == [torch.bfloat16 if bfloat16 else torch.float32] * 2


def test_videos_are_aligned_frame_by_frame():
    backbone = ZigMa(1, 8, 8, patch_size=2, latent_frames=2, width=WIDTH, depth=2)
    module = GenerativeModule(backbone, loss_terms={"repa": REPA(RandomPatches(), hidden_width=8)})
    images = torch.randint(256, (3, 2, 1, 8, 8), dtype=torch.uint8)
    targets = module.loss_terms["repa"].targets(images)
    assert targets.shape == (3, 32, 6)
    alone = module.loss_terms["repa"].targets(images[:, 1])
    torch.testing.assert_close(targets[:, 16:], alone)
    clips = Batch(images / 127.5 - 1, torch.arange(3), {}, images)
    assert torch.isfinite(module.training_loss(clips))


def test_missing_images_are_explained_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(Digits, "has_images", False)
    module = build()
    with pytest.raises(UserError, match=r"loss_terms\.repa .*data\.cache"):
        train(tmp_path, module, 1)
    assert "network" not in vars(module.loss_terms["repa"].teacher)
    with pytest.raises(UserError, match="images"):
        term_of(module, batch()._replace(images=None), torch.randn(3, 16, WIDTH))


def test_a_missing_teacher_is_explained_before_training_and_needed_only_then(tmp_path):
    class Missing(RandomPatches):
        def load(self):
            raise UserError("no weights")

    module = build(Missing())
    trainer = L.Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.validate(module, datamodule=Digits(batch_size=500), verbose=False)
    with pytest.raises(UserError, match="no weights"):
        train(tmp_path, module, 1)


@pytest.mark.parametrize("options", [{"layer": 5}, {"layer": 0}, {"hidden_width": 0}])
def test_bad_options(options):
    with pytest.raises(UserError, match=next(iter(options))):
        GenerativeModule(
            ZigMa(1, 8, 8, patch_size=2, width=16, depth=4), loss_terms={"repa": REPA(RandomPatches(), **options)}
        )


def test_a_backbone_without_a_token_grid_is_named():
    with pytest.raises(UserError, match="grid"):
        REPA(RandomPatches()).attach(torch.nn.Linear(2, 2))


def test_features_of_a_wrong_shape_are_named():
    teacher = RandomPatches()
    teacher.features = lambda images: torch.zeros(len(images), 7, 2, 2)
    with pytest.raises(UserError, match="RandomPatches"):
        teacher(batch().images)


def test_unit_vectors_give_the_same_term():
    """The scale of the teacher's features has no effect."""
    module, tokens = build(), torch.randn(3, 16, WIDTH)
    repa = module.loss_terms["repa"]
    expected, features = term_of(module, batch(), tokens), repa.teacher(batch().images)
    repa.teacher = lambda images: 5 * normalize(features, dim=1)
    torch.testing.assert_close(term_of(module, batch(), tokens), expected)
