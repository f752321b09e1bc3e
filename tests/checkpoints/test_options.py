"""Kinds: options that decide the numbers and fit the weights all the same; an average that is not finite."""

import warnings

import pytest
import torch
from kills_driver import build, trainer_for
from safetensors.torch import load_file, save_file

import zigma_pl
from zigma_pl.core.errors import UserError
from zigma_pl.data import Digits
from zigma_pl.interop.folder import WEIGHTS_NAME, load_backbone
from zigma_pl.interpolant import Objective
from zigma_pl.scan.schedule import ScanConfig
from zigma_pl.training.callbacks.checkpoint_options import GROUPS, check_same
from zigma_pl.training.callbacks.ema import EMA
from zigma_pl.training.callbacks.non_finite import NonFiniteGuard
from zigma_pl.training.checkpoints.newest import newest_checkpoint


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer_for(folder, 1).fit(build(), datamodule=Digits(batch_size=4))
    return newest_checkpoint(folder / "checkpoints").path


def validate(saved, folder, module, data=None, allowed=()):
    trainer = trainer_for(folder, 1)
    trainer.checkpoint_callback.allow_changed = allowed
    return trainer.validate(module, datamodule=data or Digits(batch_size=8), ckpt_path=saved, verbose=False)


CHANGED = {
    "scan": lambda: (build(scan=ScanConfig("hilbert")), None),
    "objective": lambda: (build(objective=Objective(prediction="noise")), None),
    "encoders": lambda: (build(), Digits(batch_size=4)),
    "conditions": lambda: (build(), None),
    "backbone": lambda: (build(attention_heads=4), None),
}


@pytest.mark.parametrize("group", GROUPS)
def test_what_decides_the_numbers_is_refused_by_name_unless_it_is_allowed(group, saved, tmp_path, monkeypatch):
    module, data = CHANGED[group]()
    if data is not None:
        fingerprint = {"name": "another"}
        monkeypatch.setattr(type(data.frozen_autoencoder), "fingerprint", lambda self: fingerprint)
    if group == "conditions":  # 11 classes without a null condition take as many weights
        content = torch.load(saved, weights_only=True)
        content["zigma_options"]["conditions"] |= {"num_classes": 11, "null_condition": False}
        saved = tmp_path / "other.ckpt"
        torch.save(content, saved)
    with pytest.raises(UserError, match=f"{group}.*--allow_changed {group}"):
        validate(saved, tmp_path, module, data)
    with pytest.warns(UserWarning, match=f"options changed since checkpoint .*: {group}"):
        assert validate(saved, tmp_path, CHANGED[group]()[0], data, allowed=(group,))


def test_the_same_options_say_nothing_and_an_old_checkpoint_is_said(saved, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        validate(saved, tmp_path, build())
    assert not [warning for warning in caught if "options" in str(warning.message)]
    content = torch.load(saved, weights_only=True)
    del content["zigma_options"]
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.warns(UserWarning, match=r"old\.ckpt does not contain the options"):
        validate(tmp_path / "old.ckpt", tmp_path, build())


def test_the_rest_is_one_warning_when_training_is_resumed(saved, tmp_path):
    trainer = trainer_for(tmp_path, 2)
    next(callback for callback in trainer.callbacks if isinstance(callback, EMA)).decay = 0.6
    with pytest.warns(UserWarning, match=r"ema\.decay 0\.5 -> 0\.6") as caught:
        trainer.fit(build(), datamodule=Digits(batch_size=2), ckpt_path=saved)
    (said,) = [str(one.message) for one in caught if "options changed" in str(one.message)]
    assert "data.batch_size 4 -> 2" in said


def plan(*mixers):
    return {"backbone": {"mixers": [{"class_path": name, "init_args": options} for name, options in mixers]}}


ATTENTION = ("zigma_pl.mixers.SelfAttention", {"rotary": False})
SAVED = plan(("zigma_pl.mixers.Mamba2", {"head_dim": 8, "activation_memory": "lean"}), ATTENTION)


def test_mixers_may_compute_in_another_way_and_may_have_options_of_a_newer_release():
    now = plan(("zigma_pl.mixers.Mamba2", {"head_dim": 8, "activation_memory": "fast", "new": 1}), ATTENTION)
    assert check_same(SAVED, now, (), "a.ckpt") == []


@pytest.mark.parametrize(
    ("now", "named"),
    [
        (plan(("zigma_pl.mixers.Mamba2", {"head_dim": 4}), ATTENTION), r"mixers\.0\.init_args\.head_dim 8 -> 4"),
        (plan(("zigma_pl.mixers.Mamba", {"head_dim": 8}), ATTENTION), r"mixers\.0\.class_path"),
        (plan(("zigma_pl.mixers.Mamba2", {"head_dim": 8})), "mixers"),
    ],
)
def test_other_mixers_are_refused(now, named):
    with pytest.raises(UserError, match=rf"backbone\.{named}.*--allow_changed backbone"):
        check_same(SAVED, now, (), "a.ckpt")


class SpoilsAverage(EMA):
    """Puts NaN into the average alone."""

    def on_train_batch_end(self, trainer, *arguments):
        super().on_train_batch_end(trainer, *arguments)
        self.averages[0].detach().view(-1)[0] = torch.nan


@pytest.mark.parametrize("guarded", [True, False])
def test_an_average_with_nan_ends_training_and_is_not_saved(guarded, tmp_path):
    guard = [NonFiniteGuard(check_every_n_steps=1)] if guarded else []
    trainer = trainer_for(tmp_path, 3, *guard)
    place = next(number for number, one in enumerate(trainer.callbacks) if isinstance(one, EMA))
    trainer.callbacks[place] = SpoilsAverage(decay=0.5)
    with pytest.raises(UserError, match="NaN or infinity"):
        trainer.fit(build(), datamodule=Digits(batch_size=4))
    assert trainer.global_step == (1 if guarded else 2)  # the guard's check comes before the first checkpoint
    assert newest_checkpoint(tmp_path / "checkpoints").path is None


def test_weights_with_nan_are_neither_exported_nor_read(tmp_path):
    module = build()
    zigma_pl.save_pretrained(module.backbone, tmp_path / "whole")
    next(module.backbone.parameters()).data.view(-1)[0] = torch.nan
    with pytest.raises(UserError, match="NaN or infinity"):
        zigma_pl.save_pretrained(module.backbone, tmp_path / "spoiled")
    assert not (tmp_path / "spoiled").exists()
    weights = load_file(tmp_path / "whole" / WEIGHTS_NAME)
    next(iter(weights.values())).view(-1)[0] = torch.inf
    save_file(weights, tmp_path / "whole" / WEIGHTS_NAME)
    with pytest.raises(UserError, match="NaN or infinity"):
        load_backbone(tmp_path / "whole")
