"""Kinds: names in files that become paths, and counts in files that become memory.

Both are refused where the manifest is read, whoever reads it; `prepare` touches nothing outside of its folder.
"""

import json
import shutil
from pathlib import Path

import pytest

from zigma_pl.cli.commands.prepare import main
from zigma_pl.core.errors import UserError
from zigma_pl.core.records import parse_record
from zigma_pl.data import Digits
from zigma_pl.data.cache.manifest import Manifest

STORED = Path(__file__).parent / "stored"
HUGE = 10**12


def changed(*keys, to):
    """Return the stored manifest with another value at a place."""
    manifest = json.loads((STORED / "manifest.json").read_text())
    place = manifest
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = to
    return json.dumps(manifest)


SHARD = ("splits", "train", 0)
FILE = {"num_bytes": 1000, "sha256": "0" * 64}
BAD = {
    "a split that is a path": changed("num_items", "../victim", to=3),
    "an absolute split": changed("num_items", "/another/dir", to=1),
    "a split of another name": changed("splits", "extra", to=[]),
    "shards in another folder": changed("splits", "../vic", to=[]),
    "a shard that is a path": changed(*SHARD, "name", to="../../shard-00000"),
    "a file that is a path": changed(*SHARD, "files", to={"../shard-00000.pixels.npy": FILE}),
    "a file of another shard": changed(*SHARD, "files", to={"shard-00001.pixels.npy": FILE}),
    "no hash": changed(*SHARD, "files", to={"shard-00000.pixels.npy": {**FILE, "sha256": "../x"}}),
    "too many items": changed("num_items", "train", to=HUGE),
    "a shard of too many items": changed(*SHARD, "num_items", to=HUGE),
    "a shard of more samples than bytes": changed(*SHARD, "num_items", to=500_000),
    "negative items": changed("num_items", "train", to=-1),
    "an endless shard size": changed("layout", "shard_size", to=HUGE),
    "too many classes": changed("content", "num_classes", to=HUGE),
    "a negative size": changed(*SHARD, "files", to={"shard-00000.pixels.npy": {**FILE, "num_bytes": -1}}),
    "shards that do not add up": changed("num_items", "train", to=6),
    "shards with a gap": changed("splits", "train", 1, "first_item", to=4),
    "a skipped item of another shard": changed(*SHARD, "skipped", to=[{"item": 4, "reason": ""}]),
    "another format": changed("layout", "format", to="webdataset"),
    "a list for an object": changed("content", to=[]),
    "a string for a number": changed("num_items", "train", to="5"),
    "a number for true": changed("format_version", to=True),
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_a_manifest_that_does_not_fit_is_one_line(text):
    with pytest.raises(UserError, match=r"^m\.json: cannot be used") as error:
        parse_record(Manifest, text, "m.json")
    assert "\n" not in str(error.value)


def test_the_unchanged_manifest_is_read():
    assert parse_record(Manifest, (STORED / "manifest.json").read_bytes(), "m.json").num_items["train"] == 5


# --- what prepare touches ---------------------------------------------------------------------------------------------


@pytest.fixture
def victim(tmp_path):
    """A folder with files that look like ours, beside `out`; nothing may touch it."""
    folder = tmp_path / "victim"
    folder.mkdir()
    for name in ("thesis.tex", "shard-00000.pixels.npy", "shard-00007.json"):
        (folder / name).write_text("precious")
    yield folder
    assert {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(
        ("thesis.tex", "shard-00000.pixels.npy", "shard-00007.json"), "precious"
    )


def prepare_digits(out, *flags):
    return main(["digits", "--out", str(out), "--num_workers", "0", "--splits", "test", *flags])


@pytest.mark.parametrize("flags", [[], ["--overwrite"]], ids=["anew", "overwrite"])
@pytest.mark.parametrize("name", ["manifest.json", "unfinished.json"])
@pytest.mark.parametrize("split", ["../victim", "{victim}"])
def test_a_manifest_does_not_lead_out_of_the_folder(tmp_path, victim, name, split, flags):
    (tmp_path / "out").mkdir()
    text = changed("num_items", to={split.format(victim=victim): 3, "train": 1}).replace('"splits": {', '"x": {')
    (tmp_path / "out" / name).write_text(text)
    with pytest.raises(UserError):
        prepare_digits(tmp_path / "out", *flags)


@pytest.mark.parametrize("flags", [[], ["--overwrite"]], ids=["anew", "overwrite"])
@pytest.mark.parametrize("split", ["test", "train"])
def test_links_in_the_folder_are_not_followed(tmp_path, victim, split, flags):
    out = Path(shutil.copytree(STORED, tmp_path / "out"))
    shutil.rmtree(out / split)
    (out / split).symlink_to(victim, target_is_directory=True)
    with pytest.raises(UserError, match=f"'{split}' is a symbolic link"):
        prepare_digits(out, *flags)


def test_overwriting_removes_a_link_and_not_what_it_leads_to(tmp_path, victim):
    out = Path(shutil.copytree(STORED, tmp_path / "out"))
    (out / "train/shard-00009.json").symlink_to(victim / "shard-00007.json")
    (out / "train/deeper").symlink_to(victim, target_is_directory=True)
    assert prepare_digits(out, "--overwrite") == 0
    assert not (out / "train").exists()
    assert len(Digits(cache=str(out)).samples("test")) == 179
