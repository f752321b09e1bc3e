import json
from types import SimpleNamespace

import pytest
import torch

from zigma_pl.core.errors import UserError
from zigma_pl.training.callbacks import progress_file
from zigma_pl.training.callbacks.progress_file import Progress, ProgressFile, read_progress


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress_file.time, "monotonic", lambda: clock.now)
    return clock


@pytest.fixture
def trainer():
    return SimpleNamespace(
        is_global_zero=True, global_step=100, max_steps=200, callback_metrics={}, num_test_batches=[4], callbacks=[]
    )


def test_training_counts_steps_from_where_it_went_on(tmp_path, clock, trainer):
    path = tmp_path / "run" / "progress.json"
    callback = ProgressFile(str(path))
    callback.on_train_start(trainer, None)
    assert read_progress(path) == Progress(phase="training", done=100, total=200)
    clock.now += 10
    trainer.global_step = 120
    trainer.callback_metrics["train/images_per_second"] = torch.tensor(64.0)
    callback.on_train_batch_end(trainer, None, None, None, 0)
    assert read_progress(path) == Progress(
        phase="training", done=120, total=200, images_per_second=64.0, seconds_left=40.0
    )  # 2 steps a second, 80 to go
    clock.now += 0.1
    trainer.global_step = 121
    callback.on_train_batch_end(trainer, None, None, None, 0)
    assert read_progress(path).done == 120  # not at every step
    trainer.global_step = 200
    callback.on_train_batch_end(trainer, None, None, None, 0)
    assert read_progress(path).done == 200


def test_scoring_counts_batches_then_images(tmp_path, clock, trainer):
    path = tmp_path / "progress.json"
    callback = ProgressFile(str(path))
    callback.on_test_batch_end(trainer, None, None, None, 0)
    assert read_progress(path) == Progress(phase="validation loss", done=1, total=4)
    callback.on_images_sampled(trainer, 16, 64)
    clock.now += 4
    callback.on_images_sampled(trainer, 32, 64)
    assert read_progress(path) == Progress(phase="sampling", done=32, total=64, images_per_second=4.0, seconds_left=8.0)
    assert json.loads(path.read_text())["phase"] == "sampling"
    assert [file.name for file in tmp_path.iterdir()] == ["progress.json"]


def test_other_processes_write_nothing(tmp_path, clock, trainer):
    trainer.is_global_zero = False
    ProgressFile(str(tmp_path / "progress.json")).on_train_start(trainer, None)
    assert read_progress(tmp_path / "progress.json") is None


@pytest.mark.parametrize("content", ["", "[]", '{"phase": "training", "done": "3"}', "[" * 100_000])
def test_a_damaged_file_is_one_line(tmp_path, content):
    """Kind: malformed files."""
    path = tmp_path / "progress.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"progress\.json") as error:
        read_progress(path)
    assert "\n" not in str(error.value)
