import os
from pathlib import Path

import pytest
import torch

from zigma_pl.core.errors import UserError
from zigma_pl.core.files import UNFINISHED
from zigma_pl.training.checkpoints.last import last_run
from zigma_pl.training.checkpoints.newest import checkpoints_in, newest_checkpoint, point_last_to, remove_unfinished
from zigma_pl.training.checkpoints.run_folder import RunFolders


def logger(kind="TensorBoardLogger", **options):
    name = f"lightning.pytorch.loggers.{kind}"
    return {"logger": {"class_path": name, "init_args": {"save_dir": "logs", "name": "row", "version": None} | options}}


def runs(trainer):
    return RunFolders.of(trainer, "experiment")


def save(folder, step, age=0, whole=True, name=None):
    path = Path(folder, f"{name or f'step_{step}'}.ckpt")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {"w": torch.arange(100.0)}, "global_step": step}, path)
    if not whole:
        path.write_bytes(path.read_bytes()[:-100])
    os.utime(path, ns=(10**18 - age, 10**18 - age))
    return path


def test_the_newest_run_and_in_it_the_highest_step(in_tmp):
    """Kind: what a clock says decides nothing."""
    save("logs/row/version_9/checkpoints", 9, age=-9)
    newest = save("logs/row/version_10/checkpoints", 3, age=3)
    save("logs/row/version_10/checkpoints", 2, age=-(10**18))
    save("logs/other/version_0/checkpoints", 9)
    save("logs/row/config_a/checkpoints", 9)
    Path("logs/row/version_11").mkdir()  # that has saved nothing
    found = last_run(runs(logger()), None)
    assert (found.checkpoint, found.folder.name, found.passed_over) == (newest, "version_10", ())
    assert last_run(runs(logger(version=9)), None).folder.name == "version_9"
    assert last_run(runs(logger(version="config_a")), None).folder.name == "config_a"
    assert last_run(runs({"logger": [{"class_path": "other"}, logger()["logger"]]}), None).checkpoint == newest


def test_the_step_is_the_files_own_whatever_its_name(tmp_path):
    newest = save(tmp_path, 7, age=5, name="a")
    save(tmp_path, 6, name="step_99")
    assert checkpoints_in(tmp_path)[0] == newest


@pytest.mark.parametrize("kind", ["TensorBoardLogger", "CSVLogger", "WandbLogger"])
def test_every_logger_has_the_same_folders(in_tmp, kind):
    assert runs(logger(kind)).next() == Path("logs/row/version_0")
    path = save("logs/row/version_4/checkpoints", 1)
    assert last_run(runs(logger(kind)), None).checkpoint == path
    assert runs(logger(kind)).next() == Path("logs/row/version_5")
    assert runs(logger("WandbLogger", version="an id")).found() == [Path("logs/row/version_4")]


def test_without_a_logger_the_experiment_names_the_folder(in_tmp):
    for given in (False, True, None, [], {"class_path": "zigma_pl.Other"}):
        assert runs({"logger": given}).next() == Path("logs/experiment/version_0")
    assert runs({"logger": False, "default_root_dir": "root"}).next() == Path("root/experiment/version_0")


def test_a_damaged_newest_one_is_told_and_the_run_stays_the_same(in_tmp):
    save("logs/row/version_0/checkpoints", 9, age=2)
    older = save("logs/row/version_1/checkpoints", 1)
    cut = save("logs/row/version_1/checkpoints", 2, age=1, whole=False)
    found = last_run(runs(logger()), None)
    assert found.checkpoint == older
    (message,) = found.passed_over
    assert message.startswith(f"checkpoint {cut} is truncated")
    older.unlink()
    with pytest.raises(UserError, match=r"logs/row/version_1/checkpoints .*step_2\.ckpt"):
        last_run(runs(logger()), None)


def test_without_a_checkpoint_there_is_one_line(in_tmp):
    for trainer, dirpath, where in (
        (logger(), None, r"logs/row/version_\*/checkpoints"),
        (logger(version=3), None, "logs/row/version_3/checkpoints"),
        (logger(), "elsewhere", "elsewhere"),
        ({"logger": False, "default_root_dir": "root"}, None, r"root/experiment/version_\*/checkpoints"),
    ):
        with pytest.raises(UserError, match=f"no checkpoint in {where}: "):
            last_run(runs(trainer), dirpath)


def test_a_folder_of_its_own(in_tmp):
    path = save("mine", 1)
    assert last_run(runs(logger()), "mine").folder is None
    for name in ("version_9", "version_10"):
        Path("logs/row", name).mkdir(parents=True)
    found = last_run(runs(logger()), "mine")
    assert (found.checkpoint, found.folder.name) == (path, "version_10")
    assert last_run(runs({"logger": False}), "mine").checkpoint == path


def test_links_and_half_written_files_are_no_checkpoints(tmp_path):
    first, second = (save(tmp_path, step) for step in (1, 2))
    save(tmp_path, 3, name=f"{UNFINISHED}1-step_3")
    point_last_to(first)
    assert checkpoints_in(tmp_path) == [second, first]
    assert newest_checkpoint(tmp_path).path == second
    assert (tmp_path / "last.ckpt").readlink() == Path(first.name)
    point_last_to(second)
    assert (tmp_path / "last.ckpt").resolve() == second
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "step_1.ckpt", "step_2.ckpt"}
    assert newest_checkpoint(tmp_path / "none").path is None
