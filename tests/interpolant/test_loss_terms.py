from functools import partial

import lightning as L
import pytest
import torch
from torch import nn

from zigma_pl.backbones import DiT, ZigMa
from zigma_pl.core.errors import UserError
from zigma_pl.data import Digits
from zigma_pl.interop.training_checkpoint import PREFIX
from zigma_pl.interpolant import Objective
from zigma_pl.interpolant.loss_terms import LossTerm
from zigma_pl.models.taps import tapped
from zigma_pl.training.callbacks.ema import EMA
from zigma_pl.training.callbacks.non_finite import NonFiniteGuard
from zigma_pl.training.module import OWN_TERM, GenerativeModule

WIDTH = 16


class Head(LossTerm):
    """Predicts the mean of the images from the tokens of a block."""

    def __init__(self, **options):
        super().__init__(layers=["blocks.1"], **options)
        self.projection = nn.Linear(WIDTH, 1)
        self.steps = []

    def forward(self, inputs):
        self.steps.append(set(inputs.features))
        means = inputs.batch.images.float().flatten(1).mean(1) / 255
        return (self.projection(inputs.features["blocks.1"].mean(1))[:, 0] - means).square()


class DataError(LossTerm):
    """The error of the data that the prediction implies."""

    def forward(self, inputs):
        output, x_t = inputs.evaluation.output, inputs.evaluation.x_t
        error = inputs.objective.data(output, x_t, inputs.t) - inputs.batch.latents
        return error.square().flatten(1).mean(1)


def build(backbone_class=ZigMa, **options):
    torch.manual_seed(0)
    backbone = backbone_class(1, 8, 8, patch_size=4, width=WIDTH, depth=2, num_classes=10)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    optimizer = partial(torch.optim.AdamW, lr=1e-2)
    return GenerativeModule(backbone, Objective(), optimizer=optimizer, **options)


def batch():
    return Digits().encode(
        Digits().held_out_conditions("validation", [0, 1])._replace(images=torch.ones(2, 1, 8, 8)), "cpu"
    )


def train(folder, module, num_steps, *callbacks):
    trainer = L.Trainer(
        default_root_dir=folder, max_steps=num_steps, max_epochs=-1, accelerator="cpu", callbacks=list(callbacks),
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, log_every_n_steps=1, gradient_clip_val=1.0,
    )  # fmt: skip
    trainer.fit(module, datamodule=Digits(batch_size=4))
    return trainer


def test_the_total_is_the_weighted_sum():
    plain = build().training_loss(batch())
    module = build(loss_terms={"data": DataError(weight=0.5), "head": Head(weight=2.0)})
    total = module.training_loss(batch())
    (values,) = module._terms
    assert values.keys() == {OWN_TERM, "data", "head"}
    torch.testing.assert_close(values[OWN_TERM], plain)
    torch.testing.assert_close(total, plain + 0.5 * values["data"] + 2.0 * values["head"])
    assert values["data"] > 0


def test_terms_do_not_change_the_validation_loss():
    t, generators = torch.tensor([0.3, 0.6]), [torch.Generator().manual_seed(i) for i in (0, 1)]
    module = build(loss_terms={"data": DataError()}).eval()
    with_term = module.loss_per_sample(batch(), t, generators)
    generators = [torch.Generator().manual_seed(i) for i in (0, 1)]
    torch.testing.assert_close(with_term, build().eval().loss_per_sample(batch(), t, generators))


def test_a_head_is_trained_logged_and_saved_but_averaged_only_if_asked(tmp_path):
    for averaged in (False, True):
        ema = EMA(decay=0.9)
        module = build(loss_terms={"head": Head(averaged=averaged)})
        before = module.loss_terms["head"].projection.weight.clone()
        trainer = train(tmp_path, module, 4, ema, NonFiniteGuard())
        head = module.loss_terms["head"].projection.weight
        assert not torch.equal(before, head)
        assert trainer.logged_metrics.keys() >= {"train/terms/head", f"train/terms/{OWN_TERM}"}
    names = set(module.state_dict())
    assert "loss_terms.head.projection.weight" in names
    assert not any("head" in name for name in names if name.startswith(PREFIX))


class KeepWeights(L.Callback):
    def __init__(self, ema):
        self.ema, self.equal = ema, []

    def on_train_batch_end(self, trainer, pl_module, *_):
        weight = pl_module.loss_terms["head"].projection.weight
        self.equal.append(torch.equal(weight, self.ema._average_model.module.loss_terms["head"].projection.weight))


@pytest.mark.parametrize("averaged", [False, True])
def test_the_average_of_a_head(tmp_path, averaged):
    ema = EMA(decay=0.9)
    keep = KeepWeights(ema)
    train(tmp_path, build(loss_terms={"head": Head(averaged=averaged)}), 3, ema, keep)
    assert keep.equal[-1] is not averaged


def test_a_term_counts_from_its_first_step_to_its_last(tmp_path):
    head = Head(start_step=1, end_step=3)
    train(tmp_path, build(loss_terms={"head": head}), 5)
    assert head.steps == [{"blocks.1"}] * 2


def test_gradients_that_are_not_finite_in_a_head_skip_the_step(tmp_path):
    module = build(loss_terms={"head": Head()})
    with torch.no_grad():
        module.loss_terms["head"].projection.weight.fill_(torch.nan)
    before = {name: value.clone() for name, value in module.backbone.state_dict().items()}
    train(tmp_path, module, 2, NonFiniteGuard())
    assert all(torch.equal(before[name], value) for name, value in module.backbone.state_dict().items())


@pytest.mark.parametrize("backbone_class", [ZigMa, DiT])
def test_tapped_tokens_are_those_that_the_next_layer_reads(backbone_class):
    backbone = build(backbone_class).backbone
    x, t = torch.randn(2, 1, 8, 8), torch.rand(2)
    read = []
    handle = backbone.final_layer.norm.register_forward_pre_hook(lambda module, given: read.append(given[0]))
    with tapped(backbone, ["blocks.0", "blocks.1"]) as features:
        backbone(x, t)
    handle.remove()
    assert features["blocks.0"].shape == features["blocks.1"].shape == (2, 4, WIDTH)
    if read:  # ZigMa's last norm is fused with the sum and does not call the module
        torch.testing.assert_close(features["blocks.1"], read[0])


def test_an_unknown_layer():
    with pytest.raises(UserError, match=r"blocks\.9"), tapped(build().backbone, ["blocks.9"]):
        pass


@pytest.mark.parametrize("steps", [(-1, None), (3, 3)])
def test_steps_out_of_range(steps):
    with pytest.raises(UserError):
        DataError(start_step=steps[0], end_step=steps[1])
