import os
from pathlib import Path

import pytest
import torch

from zigma_pl.checkpoints.last import last_run
from zigma_pl.checkpoints.newest import checkpoints_in, newest_checkpoint, point_last_to, remove_unfinished
from zigma_pl.errors import UserError
from zigma_pl.files import UNFINISHED


def logger(**options):
    name = "lightning.pytorch.loggers.TensorBoardLogger"
    return {"logger": {"class_path": name, "init_args": {"save_dir": "logs", "name": "row", "version": None} | options}}


def save(folder, name, age, whole=True):
    path = Path(folder, f"{name}.ckpt")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {"w": torch.arange(100.0)}, "global_step": 1}, path)
    if not whole:
        path.write_bytes(path.read_bytes()[:-100])
    os.utime(path, ns=(10**18 - age, 10**18 - age))
    return path


def test_the_newest_run_and_in_it_the_newest_checkpoint(in_tmp):
    save("logs/row/version_0/checkpoints", "step_9", age=2)
    newest = save("logs/row/version_10/checkpoints", "step_2", age=1)
    save("logs/row/version_10/checkpoints", "step_3", age=3)
    save("logs/other/version_0/checkpoints", "step_9", age=0)
    save("logs/row/config_a/checkpoints", "step_9", age=0)
    found = last_run(logger(), None)
    assert (found.checkpoint, found.version, found.passed_over) == (newest, "version_10", ())
    assert last_run(logger(version=0), None).version == "version_0"
    assert last_run(logger(version="config_a"), None).version == "config_a"
    assert last_run({"logger": [{"class_path": "other"}, logger()["logger"]]}, None).checkpoint == newest


def test_a_damaged_newest_one_is_told_and_the_run_stays_the_same(in_tmp):
    save("logs/row/version_0/checkpoints", "step_9", age=2)
    older = save("logs/row/version_1/checkpoints", "step_1", age=3)
    cut = save("logs/row/version_1/checkpoints", "step_2", age=1, whole=False)
    found = last_run(logger(), None)
    assert found.checkpoint == older
    assert found.passed_over == (f"checkpoint {cut} is truncated: the one saved before it is used",)
    older.unlink()
    with pytest.raises(UserError, match=r"no checkpoint in logs/row/version_1/checkpoints is whole .step_2\.ckpt"):
        last_run(logger(), None)


def test_without_a_checkpoint_there_is_one_line(in_tmp):
    for trainer, dirpath, where in (
        (logger(), None, r"logs/row/version_\*/checkpoints"),
        (logger(version=3), None, "logs/row/version_3/checkpoints"),
        (logger(), "elsewhere", "elsewhere"),
        ({"logger": False, "default_root_dir": "root"}, None, "root/checkpoints"),
    ):
        with pytest.raises(UserError, match=f"no checkpoint in {where}: leave the option out"):
            last_run(trainer, dirpath)
    with pytest.raises(UserError, match=r"set checkpoint\.dirpath"):
        last_run({"logger": {"class_path": "zigma_pl.Other"}}, None)


def test_a_folder_of_its_own(in_tmp):
    path = save("mine", "step_1", age=0)
    assert last_run(logger(), "mine").version is None
    for name in ("version_9", "version_10"):
        Path("logs/row", name).mkdir(parents=True)
    found = last_run(logger(), "mine")
    assert (found.checkpoint, found.version) == (path, "version_10")
    assert last_run({"logger": False}, "mine").checkpoint == path


def test_links_and_half_written_files_are_no_checkpoints(tmp_path):
    first, second = (save(tmp_path, f"step_{step}", age=0) for step in (1, 2))
    save(tmp_path, f"{UNFINISHED}1-step_3", age=-5)
    point_last_to(first)
    assert checkpoints_in(tmp_path) == [second, first]
    assert newest_checkpoint(tmp_path).path == second
    assert (tmp_path / "last.ckpt").readlink() == Path(first.name)
    point_last_to(second)
    assert (tmp_path / "last.ckpt").resolve() == second
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "step_1.ckpt", "step_2.ckpt"}
    assert newest_checkpoint(tmp_path / "none").path is None
