import os
import random
import warnings

import lightning as L
import numpy as np
import pytest
import torch
from kills_driver import train

from zigma_pl.core.errors import UserError
from zigma_pl.training.callbacks.checkpoint import Checkpoint
from zigma_pl.training.checkpoints.newest import checkpoints_in
from zigma_pl.training.checkpoints.resume import random_state, set_random_state


def names(folder):
    return sorted(path.name for path in folder.iterdir())


class FakeTrainer:
    """What linking and pruning needs of a trainer."""

    class strategy:
        @staticmethod
        def remove_checkpoint(path):
            os.unlink(path)


def saved(tmp_path, steps, **options):
    checkpoint = Checkpoint(str(tmp_path), **options)
    for step in steps:
        path = tmp_path / f"step_{step:08d}.ckpt"
        path.write_text("x")
        checkpoint._link_and_prune(FakeTrainer, path)
    return names(tmp_path)


def test_the_newest_are_kept_and_some_for_ever(tmp_path):
    (tmp_path / "mine.ckpt").touch()  # of another name: none of ours to remove
    assert saved(tmp_path, range(100, 900, 100), keep_last=2, keep_every_n_steps=300) == [
        "last.ckpt",
        "mine.ckpt",
        *(f"step_{step:08d}.ckpt" for step in (300, 600, 700, 800)),
    ]
    assert (tmp_path / "last.ckpt").readlink().name == "step_00000800.ckpt"


def test_one_alone_can_be_kept(tmp_path):
    assert saved(tmp_path, [1, 2, 3], keep_last=1) == ["last.ckpt", "step_00000003.ckpt"]


def test_no_higher_step_is_removed_for_a_lower_one_whatever_the_clock_says(tmp_path):
    """Kind: what a clock says decides nothing."""
    for step, time in ((2, 4e9), (9, 0), (4, 4e9)):
        path = tmp_path / f"step_{step:08d}.ckpt"
        path.touch()
        os.utime(path, (time, time))
    kept = ["last.ckpt", "step_00000006.ckpt", "step_00000009.ckpt"]
    assert saved(tmp_path, [6], keep_last=1) == kept


@pytest.mark.parametrize(
    "options",
    [
        {"keep_last": 0},
        {"every_n_train_steps": 0},
        {"keep_every_n_steps": 0},
        {"filename": "best"},
        {"filename": "a/step_{step}"},
    ],
)
def test_wrong_options_are_named(options):
    with pytest.raises(UserError, match=f"checkpoint.{next(iter(options))}"):
        Checkpoint(**options)


def test_random_numbers_go_on():
    def draws():
        of_numpy = np.random.rand(), np.random.randn()  # noqa: NPY002  the global numbers are what is tested
        return random.random(), random.gauss(0, 1), of_numpy, torch.randn(3).tolist()

    draws()  # an odd number of normals has been drawn
    state = random_state()
    expected = draws(), draws()
    set_random_state(state)
    assert (draws(), draws()) == expected


@pytest.mark.parametrize("interrupted_at", [3, 4])
def test_resumed_equals_uninterrupted(tmp_path, interrupted_at):
    """Bit for bit, with random numbers in the loss; step 4 is followed by a validation that draws some too."""
    train(tmp_path / "whole", 6)
    train(tmp_path / "parts", interrupted_at)
    assert names(tmp_path / "parts" / "checkpoints")[-1] == f"step_{interrupted_at:08d}.ckpt"  # the last step, always
    train(tmp_path / "parts", 6)
    whole, parts = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "parts")
    )
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(whole[key][name], parts[key][name]) for name in whole[key])
    assert any(not torch.equal(whole["state_dict"][n], whole["current_model_state"][n]) for n in whole["state_dict"])
    moments = [[s["exp_avg"] for s in c["optimizer_states"][0]["state"].values()] for c in (whole, parts)]
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))
    assert whole["lr_schedulers"] == parts["lr_schedulers"]
    assert torch.equal(whole["random_states"][0]["torch"], parts["random_states"][0]["torch"])
    assert whole["callbacks"]["TrainingTotals"]["samples_seen"] == 24
    assert parts["callbacks"]["TrainingTotals"]["samples_seen"] == 24


def test_another_number_of_processes_is_said_once(tmp_path):
    train(tmp_path, 2)
    (path,) = checkpoints_in(tmp_path / "checkpoints")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["random_states"] *= 2
    torch.save(checkpoint, path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(tmp_path, 4)
    said = [warning for warning in caught if "2 processes and this run has 1" in str(warning.message)]
    assert len(said) == 1
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4


def test_what_was_left_half_written_is_removed(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / ".unfinished-1-step_00000009.ckpt").touch()
    train(tmp_path, 2)
    assert names(folder) == ["last.ckpt", "step_00000002.ckpt"]


class BreaksValidation(L.Callback):
    """Stands for a kill in the last validation."""

    def on_validation_batch_start(self, *_):
        raise InterruptedError


def test_the_last_step_is_saved_before_its_validation(tmp_path):
    with pytest.raises(InterruptedError):
        train(tmp_path, 3, BreaksValidation(), val_check_interval=3)
    assert names(tmp_path / "checkpoints")[-1] == "step_00000003.ckpt"


def test_a_run_that_ends_by_its_epochs_saves_its_last_step(tmp_path):
    train(tmp_path, -1, max_epochs=1, limit_train_batches=3)
    assert names(tmp_path / "checkpoints")[-1] == "step_00000003.ckpt"
