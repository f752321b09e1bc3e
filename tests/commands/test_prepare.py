import errno
import importlib
import inspect
import json
import multiprocessing
import os
import signal
from contextlib import contextmanager

import pytest
from commands.prepared_place import one_line, prepare_again
from data.prepared.tiny import arguments, content_of, faces, prepare_faces
from processes import server

from zigma_pl.cli.commands.prepare import DATA_SETS, main
from zigma_pl.cli.main import main as zigma_pl
from zigma_pl.core.errors import UserError
from zigma_pl.core.files import UNFINISHED
from zigma_pl.data import ImageDataModule
from zigma_pl.data.cache import arrays
from zigma_pl.data.cache.manifest import CURRENT_NAMES
from zigma_pl.data.preparation import run
from zigma_pl.data.preparation.run import sole_writer

# --- interrupted and resumed -----------------------------------------------------------------------------------------


def unrecorded(out):
    """Return what is on disk and belongs to no finished shard."""
    records = [json.loads(path.read_text()) for path in out.rglob("shard-*.json")]
    known = {name for record in records for name in (f"{record['name']}.json", *record["files"])}
    return [path for path in out.rglob("*") if path.is_file() and path.parent != out and path.name not in known]


def killed_while_preparing(place, out):
    """Prepare, and be killed while the second shard is written."""
    begun, write = [], arrays.written_whole

    @contextmanager
    def killing(path):
        with write(path) as file:
            yield file
            begun.append(path)
            if len(begun) == 9:
                os.kill(os.getpid(), signal.SIGKILL)

    arrays.written_whole = killing
    prepare_again(place, out)


def test_killed_and_gone_on_with(place, tmp_path):
    """What a SIGKILL leaves is whole shards and what the next run removes."""
    out = tmp_path / "out"
    process = multiprocessing.get_context("fork").Process(target=killed_while_preparing, args=(place, out))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [path.name for path in sorted(out.rglob("shard-*.json"))] == ["shard-00000.json"]
    assert any(path.name.startswith(UNFINISHED) for path in unrecorded(out))
    first = out / "train/shard-00000.moments.npy"
    made, content = first.stat().st_mtime_ns, first.read_bytes()
    with pytest.raises(UserError, match=r"incomplete.*run the same command again"):
        faces(place / "mm", cache=str(out), autoencoder=str(place / "kl")).setup("fit")
    assert prepare_again(place, out) == 0
    assert (first.stat().st_mtime_ns, first.read_bytes()) == (made, content)
    assert content_of(out) == content_of(place / "whole")
    assert prepare_again(place, out, check=True) == 0


def test_cut_off_by_an_error_and_gone_on_with(place, tmp_path, monkeypatch):
    def failing(*arguments):
        if len(list(tmp_path.rglob("shard-*.json"))) == 2:
            raise RuntimeError("power cut")
        return arrays.write_shard(*arguments)

    monkeypatch.setattr(run, "write_shard", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        prepare_again(place, tmp_path / "out")
    monkeypatch.undo()
    assert not unrecorded(tmp_path / "out")
    assert prepare_again(place, tmp_path / "out") == 0
    assert content_of(tmp_path / "out") == content_of(place / "whole")


def test_full_disk_is_one_line_and_leaves_whole_shards(place, tmp_path, monkeypatch, capsys):
    written = []

    def full(descriptor):
        written.append(descriptor)
        if len(written) == 25:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("zigma_pl.core.files.os.fsync", full)
    out = tmp_path / "out"
    assert zigma_pl(["prepare", *arguments(place / "mm", out, place / "kl")]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert "disk is full" in lines[0]
    assert len(list(out.rglob("shard-*.json"))) == 1
    assert not unrecorded(out)
    assert not list(out.rglob(f"{UNFINISHED}*"))
    assert prepare_again(place, out) == 0
    assert content_of(out) == content_of(place / "whole")


def test_splits_may_come_one_after_another(place, tmp_path):
    assert prepare_again(place, tmp_path, splits=["train"]) == 0
    data = faces(place / "mm", cache=str(tmp_path), autoencoder=str(place / "kl"))
    with pytest.raises(UserError, match=r"has train but not 'test': .*--splits test"):
        data.setup("test")
    assert prepare_again(place, tmp_path, splits=["validation", "test"]) == 0
    found, whole = content_of(tmp_path), content_of(place / "whole")
    assert json.loads(found.pop("manifest.json")) == json.loads(whole.pop("manifest.json"))
    assert found == whole


# --- several processes ------------------------------------------------------------------------------------------------


def test_two_processes_share_the_shards(place, tmp_path, monkeypatch):
    # Nothing is inherited here either, but spawned processes would import for seconds.
    contexts = {"spawn": server()}
    monkeypatch.setattr(multiprocessing, "get_context", contexts.__getitem__)
    # As pixels: the autoencoder would import diffusers in both processes.
    assert prepare_faces(place / "mm", tmp_path, devices=2, batch_size=6) == 0
    assert prepare_faces(place / "mm", tmp_path, check=True) == 0
    shards = {path.name.partition(".")[0] for path in place.rglob("whole/*/*.npy")}
    assert len(shards) > 2
    assert {path.name.partition(".")[0] for path in tmp_path.rglob("*.npy")} == shards


def hold(folder, held, done):
    with sole_writer(folder):
        held.set()
        done.wait(20)


def test_a_second_run_into_the_same_folder_is_refused(place, tmp_path):
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, held, done))
    other.start()
    assert held.wait(10)
    with pytest.raises(UserError, match="another process is writing to this folder") as error:
        prepare_again(place, tmp_path)
    assert str(tmp_path) in one_line(error)
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    assert (tmp_path / ".lock").exists()  # an existing file is no lock
    with sole_writer(tmp_path):
        pass


# --- command line -----------------------------------------------------------------------------------------------------


def test_help_names_data_sets_and_options(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in DATA_SETS)
    with pytest.raises(SystemExit):
        main(["mm_celeba_hq", "--help"])
    text = capsys.readouterr().out
    for option in ("--image_size_px", "--on_bad_file", "--autoencoder", "--text_encoder", "--synthetic"):
        assert option in text
    for option in ("--horizontal_flip", "--predict_captions", "--image-size-px"):
        assert option not in text


def test_wrong_usage_is_one_line(capsys, tmp_path):
    assert main(["cifar"]) == 2
    assert "faceshq" in capsys.readouterr().err
    for flags in (
        ["--out", "x", "--image_size", "8"],
        [],
        ["--out", "x", "--devices", "0"],
        ["--out", "x", "--shard_size", "1000001"],
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["mm_celeba_hq", *flags])
        assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(UserError, match="--devices 99"):
        main(["digits", "--out", str(tmp_path), "--devices", "99", "--accelerator", "gpu"])


@pytest.mark.parametrize("path", DATA_SETS.values())
def test_every_option_of_a_data_set_tells_prepared_sets_apart(path):
    module, name = path.rsplit(".", 1)
    data_class = getattr(importlib.import_module(module), name)
    parameters = inspect.signature(data_class.__init__).parameters
    data = data_class(**({"root": "nowhere"} if "root" in parameters else {}))
    parents = [parent for parent in data_class.__mro__ if issubclass(parent, ImageDataModule)]
    own = {option for parent in parents for option in inspect.signature(parent.__init__).parameters}
    own -= {*inspect.signature(ImageDataModule.__init__).parameters, *data.options_that_only_locate, "num_classes"}
    # The number of synthetic items is only recorded for synthetic data.
    described = {CURRENT_NAMES.get(option, option) for option in data.described()}
    assert own - {"options", "num_synthetic_items"} <= described
