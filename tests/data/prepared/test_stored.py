"""A set that an earlier release prepared is read: `stored/`, made by the release before the formats became one."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from zigma_pl.cli.commands.prepare import main
from zigma_pl.data import ImageFolder
from zigma_pl.data.cache.manifest import read_manifest
from zigma_pl.data.preparation.check import check_files

STORED = Path(__file__).parent / "stored"
NAMES = {
    "train": [0, 1, 2, 4],
    "validation": [5, 6],
    "test": [7],
}  # picture n has the colour (10, 20, 30) n; 3 is broken


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_pictures_and_captions_are_read(split):
    data = ImageFolder(
        "nowhere", condition="caption", image_size_px=4, caption_dim=4, max_caption_tokens=3, cache=str(STORED)
    )
    samples = data.samples(split)
    batch = samples.__getitems__([(number, number) for number in range(len(samples))])
    colours = torch.tensor([[10 * number, 20 * number, 30 * number] for number in NAMES[split]], dtype=torch.uint8)
    assert torch.equal(batch.images, colours[:, :, None, None].expand(-1, 3, 4, 4))
    assert all(
        caption in (f"picture {number}", f"Käse {number}")
        for caption, number in zip(batch.captions, NAMES[split], strict=True)
    )
    features, mask = data.text_encoder(batch.captions, "cpu")
    assert torch.equal(batch.caption_features, features)
    assert torch.equal(batch.caption_mask, mask)


def test_its_hashes_are_checked_and_its_skipped_file_is_known():
    manifest = read_manifest(STORED)
    assert sum(check_files(STORED, manifest)) > 1000
    assert [skipped.item for skipped in manifest.skipped] == [3]


def write_pictures(root):
    number, lines = 0, []
    for split, count in (("train", 5), ("validation", 2), ("test", 1)):
        (root / split).mkdir(parents=True)
        for place in range(count):
            Image.new("RGB", (4, 4), (10 * number, 20 * number, 30 * number)).save(root / split / f"{place}.png")
            captions = [f"picture {number}", f"Käse {number}"][: 1 + number % 2]
            lines.append(json.dumps({"file_name": f"{split}/{place}.png", "captions": captions}))
            number += 1
    (root / "train/3.png").write_bytes(b"broken")
    (root / "captions.jsonl").write_text("\n".join(lines))


def test_a_run_of_the_earlier_release_that_was_cut_off_is_finished(tmp_path):
    write_pictures(tmp_path / "pictures")
    out = shutil.copytree(STORED, tmp_path / "out")
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "unfinished.json").write_text(json.dumps({**manifest, "splits": {}}))
    for name in ("manifest.json", "train/shard-00001.json"):
        (out / name).unlink()
    options = {
        "root": tmp_path / "pictures", "out": out, "condition": "caption", "image_size_px": 4, "caption_dim": 4,
        "max_caption_tokens": 3, "shard_size": 3, "num_workers": 0, "on_bad_file": "skip", "accelerator": "cpu",
    }  # fmt: skip
    assert main(["folder", *(f"--{name}={value}" for name, value in options.items())]) == 0
    made, stored = read_manifest(out), read_manifest(STORED)
    assert made.content == stored.content
    assert {split: [shard.files for shard in shards] for split, shards in made.splits.items()} == {
        split: [shard.files for shard in shards] for split, shards in stored.splits.items()
    }
