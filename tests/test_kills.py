"""A run that is killed at any moment and continued ends as the run that was not: the same bits."""

import random
import shutil
import signal
import time

import kills_driver
import pytest
import torch
from processes import Processes, server

from zigma_pl.training.checkpoints.newest import checkpoints_in, newest_checkpoint

STAGES = [
    "before writing",
    "half written",
    "before the rename",
    "after the rename",
    "before the link",
    "within the link",
    "after the link",
    "before the pruning",
    "after the pruning",
]
LEAVES_HALF = {"before writing", "half written", "before the rename", "within the link"}


def run(folder, max_steps, stage=None, step=None, kill_after=None):
    """Train in another process, killed in a stage of saving or after so many seconds.

    Returns: 0, or minus the number of the signal that ended the process.
    """
    started = Processes("output", folder.parent, (kills_driver.run, folder, max_steps, stage, step))
    if kill_after is not None:
        time.sleep(kill_after)
        started.processes[0].kill()
    return started.statuses()[0]


def whole_run(folder, max_steps):
    server()  # its start is no part of the time
    started = time.monotonic()
    assert run(folder, max_steps) == 0
    return time.monotonic() - started


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    whole_run(folder, 8)
    return folder


def content(folder):
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["callbacks"]["TrainingTotals"].pop("seconds")
    return checkpoint


def assert_same(a, b, where=""):
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for name in a:
            assert_same(a[name], b[name], f"{where}/{name}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for number, (one, other) in enumerate(zip(a, b, strict=True)):
            assert_same(one, other, f"{where}/{number}")
    else:
        assert a == b, where


def assert_equal_runs(folder, other):
    a, b = content(folder), content(other)
    a.pop("loops"), b.pop("loops")  # counts how often it validated
    assert_same(a, b)


@pytest.mark.parametrize("stage", STAGES)
def test_killed_while_saving(stage, uninterrupted, tmp_path):
    assert run(tmp_path, 8, stage=stage, step=6) == -signal.SIGKILL
    folder = tmp_path / "checkpoints"
    newest = newest_checkpoint(folder)
    assert newest.path is not None
    assert newest.passed_over == ()
    assert newest.path.name == ("step_00000004.ckpt" if STAGES.index(stage) < 3 else "step_00000006.ckpt")
    assert (folder / "last.ckpt").is_file()  # a link that leads somewhere
    assert bool(list(folder.glob(".unfinished-*"))) == (stage in LEAVES_HALF)
    assert run(tmp_path, 8) == 0
    assert_equal_runs(tmp_path, uninterrupted)
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "step_00000006.ckpt", "step_00000008.ckpt"]


def test_killed_after_the_last_checkpoint_was_written(uninterrupted, tmp_path):
    """Nothing is left to train then, but `last.ckpt` must lead to that checkpoint."""
    assert run(tmp_path, 8, stage="before the link", step=8) == -signal.SIGKILL
    assert (tmp_path / "checkpoints" / "last.ckpt").resolve().name == "step_00000006.ckpt"
    files = sorted((tmp_path / "checkpoints").glob("step_*"))
    assert run(tmp_path, 8) == 0
    assert_equal_runs(tmp_path, uninterrupted)
    assert sorted((tmp_path / "checkpoints").glob("step_*")) == files  # loading removes none


def test_killed_twice_at_random_moments(uninterrupted, tmp_path):
    seconds = whole_run(tmp_path / "whole", 8)
    for _ in range(2):
        assert run(tmp_path / "killed", 8, kill_after=random.uniform(0.05, seconds)) in (0, -signal.SIGKILL)
        assert newest_checkpoint(tmp_path / "killed" / "checkpoints").passed_over == ()
    whole_run(tmp_path / "killed", 8)
    assert_equal_runs(tmp_path / "killed", uninterrupted)


@pytest.mark.slow
def test_twenty_kills_each_continued_to_the_end(tmp_path):
    max_steps = 40
    draws = random.Random(1)
    seconds = whole_run(tmp_path / "whole", max_steps)
    reached = []
    while len(reached) < 20:
        folder = tmp_path / f"run{seconds}"
        status = run(folder, max_steps, kill_after=draws.uniform(0.05, seconds))
        if status == 0:  # it had ended before: runs have become faster than the first
            seconds *= 0.9
            continue
        assert status == -signal.SIGKILL
        saved = checkpoints_in(folder / "checkpoints")
        reached.append(int(saved[0].stem[5:]) if saved else 0)
        whole_run(folder, max_steps)
        assert_equal_runs(folder, tmp_path / "whole")
        shutil.rmtree(folder)
    print("last step saved at each kill:", reached)
