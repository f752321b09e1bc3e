import errno
import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from backbones import tiny
from torch import nn

from zigma_pl.backbones import ZigMa
from zigma_pl.core.errors import UserError
from zigma_pl.runtime.compiling import compile_regions
from zigma_pl.training.checkpoints.archive import damage_of, read_step
from zigma_pl.training.checkpoints.content import FORMAT_KEY, FORMAT_VERSION
from zigma_pl.training.checkpoints.io import WholeFileIO, read_checkpoint

CONTENT = {"state_dict": {"weight": torch.arange(5000.0)}, "global_step": 7}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "folder" / "a.ckpt"
    WholeFileIO().save_checkpoint(CONTENT, path)
    return path


def test_what_is_saved_is_read(saved):
    checkpoint = WholeFileIO().load_checkpoint(saved, weights_only=False)
    assert checkpoint[FORMAT_KEY] == FORMAT_VERSION
    assert torch.equal(checkpoint["state_dict"]["weight"], CONTENT["state_dict"]["weight"])
    assert read_step(saved) == 7
    assert damage_of(saved) is None
    assert [path.name for path in saved.parent.iterdir()] == ["a.ckpt"]
    WholeFileIO().remove_checkpoint(saved)
    assert not saved.exists()


def refused(path):
    with pytest.raises(UserError) as caught:
        WholeFileIO().load_checkpoint(path, weights_only=False)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("share", [0, 0.0001, 0.3, 0.9, 0.999])
def test_truncated(saved, share):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(share * len(whole))])
    assert "truncated" in refused(saved)
    assert "--ckpt_path last" in refused(saved)


@pytest.mark.parametrize("place", [0.4, 0.7])
def test_a_changed_byte_is_found(saved, place):
    changed = bytearray(saved.read_bytes())
    changed[int(place * len(changed))] ^= 16
    saved.write_bytes(changed)
    assert "is corrupted (in archive/data/0)" in refused(saved)


def test_every_changed_byte_is_found_or_harmless(tmp_path):
    path = tmp_path / "small.ckpt"
    WholeFileIO().save_checkpoint({"state_dict": {"w": torch.arange(3.0)}, "global_step": 1}, path)
    whole = path.read_bytes()
    num_found = 0
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            assert torch.equal(read_checkpoint(path)["state_dict"]["w"], torch.arange(3.0))
        except UserError as error:
            num_found += str(path) in str(error)
    assert num_found > len(whole) / 7 / 3


class Payload:
    """What a malicious file would hold."""

    def __reduce__(self):
        return os.mkdir, ("was_run",)


def test_a_payload_is_refused_and_not_run(in_tmp):
    torch.save({**CONTENT, "callbacks": Payload()}, "evil.ckpt")
    message = refused(Path("evil.ckpt"))
    assert "mkdir, which could run code" in message
    assert not Path("was_run").exists()
    pickle.loads(pickle.dumps(Payload()))
    assert Path("was_run").exists()  # it would have


def test_other_objects_and_old_pickles_are_refused(tmp_path):
    torch.save({**CONTENT, "callbacks": nn.Linear}, tmp_path / "class.ckpt")
    assert "torch.nn.modules.linear.Linear" in refused(tmp_path / "class.ckpt")
    torch.save(CONTENT, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert "is not a checkpoint of zigma_pl" in refused(tmp_path / "old.ckpt")


def test_a_newer_format_and_other_files_are_refused(tmp_path):
    torch.save({**CONTENT, FORMAT_KEY: FORMAT_VERSION + 1}, tmp_path / "newer.ckpt")
    assert f"format version {FORMAT_VERSION + 1}" in refused(tmp_path / "newer.ckpt")
    torch.save({"ema": {}, "model": {}}, tmp_path / "official.ckpt")
    assert "import-zigma" in refused(tmp_path / "official.ckpt")
    with zipfile.ZipFile(tmp_path / "other.ckpt", "w") as archive:
        archive.writestr("a.txt", "text")
    assert refused(tmp_path / "other.ckpt")
    assert "does not exist" in refused(tmp_path / "none.ckpt")


def test_a_file_without_a_version_is_read(tmp_path):
    torch.save(CONTENT, tmp_path / "plain.ckpt")
    assert read_checkpoint(tmp_path / "plain.ckpt")["global_step"] == 7


class FullDisk(io.FileIO):
    """Takes some bytes and then no more."""

    room = 3000

    def write(self, data):
        FullDisk.room -= len(data)
        if FullDisk.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.mark.parametrize("room", [0, 500, 3000, 20_000])
def test_a_full_disk_leaves_what_was_there(saved, monkeypatch, room):
    before = saved.read_bytes()
    FullDisk.room = room
    monkeypatch.setattr(Path, "open", lambda path, mode: FullDisk(path, mode))
    for path in (saved, saved.with_name("b.ckpt")):
        with pytest.raises(UserError, match=f"checkpoint {path} cannot be written .No space left on device.") as caught:
            WholeFileIO().save_checkpoint(CONTENT, path)
        assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["a.ckpt"]


def test_other_errors_while_saving_stay_what_they_are(tmp_path):
    with pytest.raises((AttributeError, pickle.PicklingError)):
        WholeFileIO().save_checkpoint({"state_dict": lambda: 0}, tmp_path / "a.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_a_compiled_backbone_has_the_names_of_a_plain_one():
    compiled, plain = (tiny.build(ZigMa) for _ in range(2))
    compile_regions(compiled)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(compiled.state_dict())


def test_names_of_wrappers_are_taken_off(tmp_path):
    a, b = torch.zeros(1), torch.ones(1)
    names = {"module.backbone._orig_mod.blocks.0._orig_mod.weight": a, "module.backbone.bias": b}
    plain = {"backbone.blocks.0.weight", "backbone.bias"}
    content = {"state_dict": names, "current_model_state": names, "global_step": 1}
    torch.save(content, tmp_path / "wrapped.ckpt")
    checkpoint = read_checkpoint(tmp_path / "wrapped.ckpt")
    assert set(checkpoint["state_dict"]) == set(checkpoint["current_model_state"]) == plain
    kept = {"module.a": a, "other.b": b}  # a part of that name is none of a wrapper
    torch.save({"state_dict": kept, "global_step": 1}, tmp_path / "kept.ckpt")
    assert read_checkpoint(tmp_path / "kept.ckpt")["state_dict"] == kept
