"""Kind: options of Lightning's Trainer that it accepts, and then ignores or gets wrong in training without epochs."""

import os

import lightning as L
import pytest
import torch
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator

from zigma_pl.backbones import ZigMa
from zigma_pl.cli import lightning_cli as cli
from zigma_pl.cli.main import main
from zigma_pl.cli.parsing import put_int_first
from zigma_pl.core.errors import UserError
from zigma_pl.data import Digits
from zigma_pl.data.order import check_length
from zigma_pl.interpolant import Objective
from zigma_pl.mixers import Mamba
from zigma_pl.training.callbacks.checkpoint import Checkpoint
from zigma_pl.training.module import GenerativeModule
from zigma_pl.training.trainer_options import check_trainer_options, default_precision


@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": 1},
        {"min_epochs": 1},
        {"check_val_every_n_epoch": 1},
        {"overfit_batches": 2},
        {"overfit_batches": 0.5},
        {"reload_dataloaders_every_n_epochs": 1},
        {"use_distributed_sampler": True},
        {"barebones": True},
        {"limit_predict_batches": 1},
        {"limit_train_batches": 0.5},
        {"limit_train_batches": -1},
        {"limit_val_batches": 1.5},
        {"limit_test_batches": -0.5},
        {"enable_checkpointing": False},
        {"precision": "bf16-true"},
        {"precision": "16-true"},
        {"precision": "64-true"},
        {"precision": 64},
        {"gradient_clip_val": -1},
        {"gradient_clip_val": float("nan")},
        {"accumulate_grad_batches": -2},
        {"accumulate_grad_batches": 0},
        {"log_every_n_steps": 0},
        {"num_nodes": 0},
        {"num_sanity_val_steps": -2},
        {"min_steps": -1},
        {"max_steps": 0},
        {"max_steps": -2},
        {"max_steps": 10**12},
        {"val_check_interval": 0},
        {"val_check_interval": 0.5},
        {"val_check_interval": 1.0},
        {"val_check_interval": -3},
    ],
)
def test_values_that_would_be_ignored_or_wrong_are_refused_by_name(options):
    with pytest.raises(UserError, match=rf"trainer\.{next(iter(options))}") as refused:
        check_trainer_options(options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_epochs": -1, "max_steps": -1, "val_check_interval": 3, "check_val_every_n_epoch": None},
        {"max_epochs": 1, "limit_train_batches": 3},
        {"max_epochs": 1, "fast_dev_run": True},
        {"val_check_interval": "00:00:10:00", "precision": "bf16-mixed", "gradient_clip_val": 0},
        {"limit_val_batches": 0, "limit_test_batches": 1.0, "limit_train_batches": 1.0, "num_sanity_val_steps": -1},
    ],
)
def test_values_that_work_pass(options):
    check_trainer_options(options)


@pytest.mark.parametrize("devices", [5, "5", 9999])
@pytest.mark.parametrize("accelerator", ["auto", "cpu"])
def test_more_processes_than_cores_are_refused_without_a_gpu(devices, accelerator, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(MPSAccelerator, "is_available", lambda: False)
    monkeypatch.setattr(CUDAAccelerator, "is_available", lambda: False)
    with pytest.raises(UserError, match=rf"trainer\.devices {devices}.* 4 ") as refused:
        check_trainer_options({"devices": devices, "accelerator": accelerator})
    assert "\n" not in str(refused.value)
    for few in (1, 4, "4", "auto", -1, "-1", [0, 1]):
        check_trainer_options({"devices": few, "accelerator": accelerator})
    monkeypatch.setattr(CUDAAccelerator, "is_available", lambda: True)
    check_trainer_options({"devices": devices, "accelerator": "cuda"})
    check_trainer_options({"devices": devices, "accelerator": "auto"})


@pytest.mark.parametrize(
    ("options", "has_gpu", "has_bfloat16", "expected"),
    [
        ({}, True, True, "bf16-mixed"),
        ({"accelerator": "auto"}, True, True, "bf16-mixed"),
        ({"accelerator": "gpu", "plugins": []}, True, True, "bf16-mixed"),
        ({"accelerator": "cuda"}, True, False, None),
        ({"accelerator": "cpu"}, True, True, None),
        ({"accelerator": "auto"}, False, False, None),
        ({"plugins": ["a precision plugin"]}, True, True, None),
    ],
)
def test_without_a_precision_gpus_with_bfloat16_use_it(options, has_gpu, has_bfloat16, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
    assert default_precision(options) == expected


def build():
    backbone = ZigMa(1, 8, 8, patch_size=4, width=8, depth=1, mixers=Mamba(state_size=2), num_classes=10)
    return GenerativeModule(backbone, Objective())


def trainer_for(folder, callbacks=(), **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return L.Trainer(
        default_root_dir=folder, use_distributed_sampler=False, callbacks=list(callbacks), **quiet, **options
    )


def test_epochs_are_refused_from_python_too(tmp_path):
    with pytest.raises(UserError, match=r"trainer\.max_epochs"):
        trainer_for(tmp_path, max_epochs=1).fit(build(), datamodule=Digits(batch_size=8))
    with pytest.raises(UserError, match=r"trainer\.overfit_batches"):
        check_length({"overfit_batches": 2})


class Validations(L.Callback):
    """Notes after which batch and optimiser step a validation comes."""

    def __init__(self):
        self.came_at = []

    def on_validation_start(self, trainer, pl_module):
        self.came_at.append((trainer.fit_loop.epoch_loop.batch_progress.total.processed, trainer.global_step))


def validations(folder, max_steps, accumulate_grad_batches, ckpt_path=None, **options):
    noted = Validations()
    trainer = trainer_for(
        folder,
        [noted, Checkpoint(dirpath=str(folder), every_n_train_steps=1, keep_every_n_steps=1)],
        max_steps=max_steps,
        accumulate_grad_batches=accumulate_grad_batches,
        check_val_every_n_epoch=None,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        **{"val_check_interval": 3, **options},
    )
    trainer.fit(build(), datamodule=Digits(batch_size=2), ckpt_path=ckpt_path)
    return noted.came_at


def test_validation_interval_counts_optimiser_steps_also_when_resumed(tmp_path):
    assert validations(tmp_path, 6, 2) == [(6, 3), (12, 6)]
    # Saved before the validation that follows step 3, which then comes first.
    assert validations(tmp_path, 6, 2, str(tmp_path / "step_00000003.ckpt")) == [(6, 3), (12, 6)]
    assert validations(tmp_path, 6, 2, str(tmp_path / "step_00000002.ckpt")) == [(6, 3), (12, 6)]
    # Steps count, not batches, where another number of batches makes a step from here on: 4 + 2 of them, then 3 each.
    assert validations(tmp_path, 6, 3, str(tmp_path / "step_00000002.ckpt"))[0][1] == 3


def test_a_limit_of_batches_does_not_add_validations(tmp_path):
    assert validations(tmp_path, 6, 1, limit_train_batches=2) == [(3, 3), (6, 6)]


class Stop(Exception):
    pass


@pytest.fixture
def parsed(monkeypatch, repository):
    """Function that parses `fit` with options, and returns those of the trainer; nothing is built."""

    def parse(*options):
        def stop(self):
            seen.update(self.config.fit.trainer.as_dict())
            raise Stop

        seen = {}
        monkeypatch.setattr(cli.ZigmaCLI, "before_instantiate_classes", stop)
        with pytest.raises(Stop):
            main(["fit", "--config", str(repository / "experiments" / "digits.yaml"), *options])
        return seen

    return parse


def test_a_whole_number_of_batches_is_not_all_of_them(parsed):
    chosen = ("--trainer.limit_val_batches=1", "--trainer.limit_test_batches=0.5", "--trainer.val_check_interval=200")
    options = parsed(*chosen)
    assert type(options["limit_val_batches"]) is int
    assert options["limit_test_batches"] == 0.5
    assert options["val_check_interval"] == 200


def test_whole_numbers_come_first_whatever_the_order_of_a_union():
    class Action:
        _typehint = float | int | None

    put_int_first(Action)
    assert Action._typehint.__args__ == (int, float, type(None))


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ("--trainer.max_epochs=1", "max_steps"),
        ("--trainer.gradient_clip_val=-1", "gradient_clip_val"),
        ("--trainer.accelerator=gpu", "gpu"),
        ("--trainer.devices=0", "devices"),
        ("--trainer.strategy=nope", "nope"),
        ("--trainer.max_time=nope", "nope"),
        ("--trainer.logger=lightning.pytorch.loggers.WandbLogger", "wandb"),
        ("--seed_everything=-1", "seed_everything"),
        ("--seed_everything=true", "seed_everything"),
        ("--model.condition_dropout=2", "condition_dropout"),
        ("--model.backbone.init_args.depth=-1", "depth"),
        ("--ema.decay=2", "decay"),
    ],
)
def test_refusals_are_one_line_on_the_command_line(option, word, repository, in_tmp, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    try:
        status = main(["fit", "--config", str(repository / "experiments" / "digits.yaml"), option])
    except SystemExit as ended:
        status = ended.code
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert status in (1, 2)
    assert len(errors) == 1
    assert word in errors[0]
    assert not (in_tmp / "logs").exists()
