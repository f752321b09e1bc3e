import errno
import importlib
import inspect
import json
import multiprocessing
import os
import signal
import time
from contextlib import contextmanager

import pytest
from data.prepared.tiny import arguments, content_of, copied, faces, prepare_faces, save_tiny_kl, write_faces

from zigma_pl.__main__ import main as zigma_pl
from zigma_pl.commands.prepare import DATA_SETS, main
from zigma_pl.data import ImageDataModule
from zigma_pl.data.prepared import arrays, run
from zigma_pl.data.prepared.lock import sole_writer
from zigma_pl.errors import UserError
from zigma_pl.files import UNFINISHED


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The faces in `mm`, an autoencoder in `kl`, and the one prepared with the other in `whole`."""
    folder = tmp_path_factory.mktemp("place")
    root, autoencoder = write_faces(folder / "mm"), save_tiny_kl(folder / "kl")
    assert prepare_faces(root, folder / "whole", autoencoder) == 0
    return folder


def prepare_again(place, out, **options):
    return prepare_faces(place / "mm", out, place / "kl", **options)


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


# --- cut off and gone on ----------------------------------------------------------------------------------------------


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
    with pytest.raises(UserError, match="cut off; run the same `prepare` command again"):
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

    monkeypatch.setattr(run, "_writer_of", lambda layout: failing)
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

    monkeypatch.setattr("zigma_pl.files.os.fsync", full)
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
    with pytest.raises(UserError, match="holds train, not 'test'; run `prepare` into the same folder with --splits"):
        data.setup("test")
    assert prepare_again(place, tmp_path, splits=["validation", "test"]) == 0
    found, whole = content_of(tmp_path), content_of(place / "whole")
    assert json.loads(found.pop("manifest.json")) == json.loads(whole.pop("manifest.json"))
    assert found == whole


# --- several processes ------------------------------------------------------------------------------------------------


def test_two_processes_share_the_shards(place, tmp_path):
    assert prepare_again(place, tmp_path, devices=2, batch_size=6) == 0
    assert prepare_again(place, tmp_path, check=True) == 0
    assert {path.name for path in tmp_path.rglob("*.npy")} == {path.name for path in place.rglob("whole/*/*.npy")}


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
    with pytest.raises(UserError, match=f"process {other.pid} is preparing into this folder") as error:
        prepare_again(place, tmp_path)
    assert str(tmp_path) in one_line(error)
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    assert (tmp_path / ".lock").exists()  # and yet it locks nothing
    started = time.perf_counter()
    with sole_writer(tmp_path):
        assert time.perf_counter() - started < 1
    assert not (tmp_path / ".lock").exists()


# --- check ------------------------------------------------------------------------------------------------------------


def test_check_finds_a_changed_byte_and_the_remedy_works(place, tmp_path, capsys):
    out = copied(place / "whole", tmp_path / "out")
    path = out / "test/shard-00000.moments.npy"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"shard-00000\.moments\.npy: is not what was written") as error:
        prepare_again(place, out, check=True)
    record = out / "test/shard-00000.json"
    assert f"remove {record} and run" in one_line(error)
    record.unlink()
    assert prepare_again(place, out) == 0
    assert prepare_again(place, out, check=True) == 0
    assert content_of(out) == content_of(place / "whole")
    assert "test: 4 samples" in capsys.readouterr().out


def test_check_finds_a_changed_data_set(place, tmp_path):
    root = copied(place / "mm", tmp_path / "mm")
    (root / "images/16.jpg").write_bytes((root / "images/3.jpg").read_bytes())
    with pytest.raises(UserError, match="entries made anew differ"):
        prepare_faces(root, place / "whole", place / "kl", check=True)
    captions = root / "celeba-caption/0.txt"
    captions.write_text(captions.read_text().upper())
    with pytest.raises(UserError, match="entry 0: captions are not those of the data set"):
        prepare_faces(root, place / "whole", place / "kl", check=True)


# --- options that do not fit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"dtype": "float16"}, "dtype 'float32', now it is 'float16'"),
        ({"shard_size": 7}, "shard_size 6, now it is 7"),
        ({"image_size_px": 8}, "image_size_px 16, now it is 8"),
        ({"max_caption_tokens": 9}, r"text_encoder\.max_tokens 12, now it is 9"),
        ({"num_validation_images": 2}, "num_validation_images 3, now it is 2"),
    ],
    ids=str,
)
def test_a_folder_prepared_with_other_options_is_not_gone_on_with(place, changed, named):
    before = content_of(place / "whole")
    with pytest.raises(UserError, match=named) as error:
        prepare_again(place, place / "whole", **changed)
    assert "--overwrite" in one_line(error)
    assert content_of(place / "whole") == before


def test_a_file_in_the_place_of_the_folder(place, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(UserError, match="cannot be written to"):
            prepare_again(place, out)


def test_overwrite_and_a_folder_of_other_things(place, tmp_path):
    out = copied(place / "whole", tmp_path / "out")
    assert prepare_again(place, out, shard_size=7, overwrite=True, splits=["test"]) == 0
    assert {path.name for path in out.iterdir()} == {"test", "manifest.json"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds other things, such as 'thesis\.tex'"):
        prepare_again(place, tmp_path / "other", overwrite=True)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"image_size_px": 8}, "image_size_px 16, these options have 8"),
        ({"autoencoder": "identity"}, r"autoencoder\.name '.*kl', these options have 'identity'"),
        ({"caption_dim": 8}, r"text_encoder\.dim 16, these options have 8"),
        ({"standin": True}, "standin False, these options have True"),
    ],
    ids=str,
)
def test_training_refuses_a_cache_that_does_not_fit(place, options, named):
    data = faces(place / "nowhere", **{"cache": str(place / "whole"), "autoencoder": str(place / "kl"), **options})
    with pytest.raises(UserError, match=named) as error:
        data.setup("fit")
    assert str(place / "whole") in one_line(error)


def test_the_autoencoder_is_known_by_its_weights(place, tmp_path):
    def setup(autoencoder):
        faces(place / "nowhere", cache=str(place / "whole"), autoencoder=str(autoencoder)).setup("fit")

    setup(copied(place / "kl", tmp_path / "moved"))
    with pytest.raises(UserError, match=r"autoencoder\.name '.*kl', these options have '.*other'"):
        setup(save_tiny_kl(tmp_path / "other", seed=1))
    exchanged = copied(place, tmp_path / "place")
    save_tiny_kl(place / "kl", seed=1)
    try:
        with pytest.raises(UserError, match=r"autoencoder\.weights_sha256 '\w{12}\.\.\.'"):
            setup(place / "kl")
    finally:
        save_tiny_kl(place / "kl")
    assert exchanged.is_dir()


def test_folders_without_a_manifest_and_manifests_of_the_future(place, tmp_path):
    def setup(folder):
        faces(place / "nowhere", cache=str(folder), autoencoder=str(place / "kl")).setup("fit")

    with pytest.raises(UserError, match=r"holds no manifest\.json.*python -m zigma_pl prepare"):
        setup(tmp_path)
    manifest = json.loads((place / "whole/manifest.json").read_text())
    for text, named in (
        (json.dumps({**manifest, "format_version": 2}), "written by a newer zigma_pl"),
        ("{", "is damaged"),
        (json.dumps({"format_version": 1}), "is no manifest"),
    ):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=named) as error:
            setup(tmp_path)
        assert str(tmp_path / "manifest.json") in one_line(error)


# --- bad files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_files_stop_or_are_skipped_counted_and_listed(place, tmp_path, capsys, num_workers):
    root, out = copied(place / "mm", tmp_path / "mm"), tmp_path / "out"
    picture = root / "images/7.jpg"
    picture.write_bytes(picture.read_bytes()[:300])
    for number in range(16, 20):
        (root / f"images/{number}.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"7\.jpg.*--on-bad-file skip") as error:
        prepare_faces(root, out, num_workers=num_workers)
    one_line(error)
    assert prepare_faces(root, out, num_workers=num_workers, on_bad_file="skip") == 0
    printed = capsys.readouterr().out
    assert "15 train, 0 validation, 0 test" in printed
    assert "skipped 8" in printed
    assert str(picture) in printed
    train = json.loads((out / "manifest.json").read_text())["splits"]["train"]
    assert [[entry["item"] for entry in shard["skipped"]] for shard in train] == [[], [7], []]
    assert str(picture) in train[1]["skipped"][0]["reason"]
    data = faces(place / "nowhere", cache=str(out), batch_size=15)
    data.setup("fit")
    assert next(iter(data.train_dataloader())).sample_ids.tolist() == list(range(15))
    assert prepare_faces(root, out, check=True) == 0


# --- command line -----------------------------------------------------------------------------------------------------


def test_help_names_data_sets_and_options(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in DATA_SETS)
    with pytest.raises(SystemExit):
        main(["mm_celeba_hq", "--help"])
    text = capsys.readouterr().out
    for option in ("--image-size-px", "--on-bad-file", "--autoencoder", "--text-encoder", "--standin"):
        assert option in text
    for option in ("--horizontal-flip", "--predict-captions", "--image_size_px"):
        assert option not in text


def test_wrong_usage_is_one_line(capsys, tmp_path):
    assert main(["cifar"]) == 2
    assert "faceshq" in capsys.readouterr().err
    for flags in (["--out", "x", "--image-size", "8"], [], ["--out", "x", "--devices", "0"]):
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
    # How many items a stand-in has matters only where there is one.
    assert own - {"options", "standin_num_items"} <= set(data.described())
