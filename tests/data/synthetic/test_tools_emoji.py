import importlib
import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

from zigma_pl.data import COCO, UCF101, MMCelebAHQ
from zigma_pl.data.video_files import open_video

NUM_FRUITS = 12


@pytest.fixture
def run(repository, monkeypatch):
    monkeypatch.syspath_prepend(repository / "tools" / "synthetic")

    def main(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        module = importlib.import_module(name)
        module.main()
        return module

    return main


def row(code_points, names, category, subcategory, variants=None):
    skin = {tone: {"unified": unified} for tone, unified in (variants or {}).items()}
    named = {"name": names[0], "short_names": names[1:], "category": category, "subcategory": subcategory}
    return {"unified": code_points, **named, "skin_variations": skin}


@pytest.fixture
def package(tmp_path):
    """A table of twelve fruits, four hands with two skin tones and a keycap."""
    rows = [row(f"1F34{i:X}", [f"FRUIT {i}", f"fruit_{i}"], "Food & Drink", "drink") for i in range(NUM_FRUITS)]
    for i in range(4):
        variants = {tone: f"1F44{i}-{tone}" for tone in ("1F3FB", "1F3FF")}
        rows.append(row(f"1F44{i}", [f"HAND {i}", f"hand-{i}"], "People & Body", "hands", variants))
    rows.append(row("0023-FE0F-20E3", ["HASH KEY", "hash"], "Symbols", "keycap"))
    folder = tmp_path / "package"
    (folder / "img/google/64").mkdir(parents=True)
    (folder / "emoji.json").write_text(json.dumps(rows))
    variants = [variant["unified"] for entry in rows for variant in entry["skin_variations"].values()]
    stems = [*(entry["unified"] for entry in rows), *variants]
    for stem in stems:
        Image.new("RGBA", (64, 64), (200, 0, 0, 0)).save(folder / "img/google/64" / f"{stem.lower()}.png")
    return folder


def animate(path, num_frames):
    frames = [Image.new("RGB", (32, 32), (5 * number, 0, 0)) for number in range(num_frames)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=42, lossless=True)


def splits_of(folder, year):
    annotations = {}
    for part in ("train", "val"):
        content = json.loads((folder / "annotations" / f"captions_{part}{year}.json").read_text())
        assert len({annotation["id"] for annotation in content["annotations"]}) == 5 * len(content["images"])
        annotations[part] = [annotation["caption"] for annotation in content["annotations"]]
    return annotations


@pytest.mark.parametrize("year", [2014, 2017])
def test_pictures_and_captions_are_read_as_coco(tmp_path, package, run, year):
    fluent = tmp_path / "fluent" / "assets"
    fluent.mkdir(parents=True)
    Image.new("RGBA", (256, 256), (0, 0, 255, 255)).save(fluent / "23-fe0f-20e3.webp", lossless=True)
    Image.new("RGB", (256, 256)).save(fluent / "1f999.webp")  # not in the table
    run("emoji_coco", package, tmp_path / "coco", "--fluent", tmp_path / "fluent", "--size-px", 32, "--year", year)
    data = COCO(str(tmp_path / "coco"), year=year, image_size_px=32)
    items = [data.load_split(split)[i] for split in ("train", "test") for i in range(len(data.load_split(split)))]
    assert len(items) == NUM_FRUITS + 12 + 2
    assert {item.image.size for item in items} == {(32, 32)}
    assert {len(item.captions) for item in items} == {5}
    colours = {tuple(np.asarray(item.image)[0, 0]) for item in items}
    assert len(colours) == 2  # white where it is transparent, and blue
    assert (255, 255, 255) in colours
    glossy = [item.captions for item in items if "A glossy emoji: hash key." in item.captions]
    assert len(glossy) == 1
    assert "A flat emoji: hand 0 with dark skin." in {caption for item in items for caption in item.captions}


def test_all_variants_of_an_emoji_are_in_one_split(tmp_path, package, run):
    run("emoji_coco", package, tmp_path / "coco")
    captions = splits_of(tmp_path / "coco", 2014)
    flat = {part: [caption for caption in captions[part] if caption.startswith("A flat emoji")] for part in captions}
    names = {part: {re.split(": | with |[.]", caption)[1] for caption in flat[part]} for part in flat}
    assert not names["train"] & names["val"]
    assert len(names["train"] | names["val"]) == NUM_FRUITS + 5
    assert names["val"]


def test_animations_are_read_as_ucf101(tmp_path, package, run):
    pytest.importorskip("av", reason="videos need PyAV")
    assets = tmp_path / "anim" / "assets"
    assets.mkdir(parents=True)
    for i in range(3):
        animate(assets / f"1f34{i}.webp", 16 + i)
        animate(assets / f"1f44{i}.webp", 20)
        animate(assets / f"1f44{i}-1f3ff.webp", 20)
    animate(assets / "1f345.webp", 15)  # too short
    run("emoji_ucf101", package, tmp_path / "anim", tmp_path / "ucf101", "--size-px", 16)
    tested = set()
    for fold in (1, 2, 3):
        data = UCF101(str(tmp_path / "ucf101"), fold=fold, image_size_px=16, num_frames=16)
        items = {split: data.load_split(split) for split in ("train", "test")}
        assert data.num_classes == 2
        assert (len(items["train"]), len(items["test"])) == (6, 3)
        tested |= {item.path for item in items["test"]}
    assert len(tested) == 9
    lengths = []
    for path in sorted(tested):
        with open_video(path) as video:
            lengths.append(video.num_frames)
            frame = np.asarray(video.read(10, 1)[0])
        assert np.abs(frame.mean((0, 1)) - (50, 0, 0)).max() < 4
    assert sorted(lengths) == [16, 17, 18, *[20] * 6]
    train = (tmp_path / "ucf101/ucfTrainTestlist/trainlist01.txt").read_text().splitlines()
    assert {line.split("/")[0] + line.split(" ")[1] for line in train} == {"Drink1", "Hand2"}


def test_emoji_as_faces_keep_pictures_captions_and_split(run, package, tmp_path):
    run("emoji_coco", package, tmp_path / "coco", "--size-px", 16)
    run("emoji_faces", tmp_path / "coco", tmp_path / "faces")
    as_coco, as_faces = (
        data(str(tmp_path / name), image_size_px=16) for data, name in ((COCO, "coco"), (MMCelebAHQ, "faces"))
    )
    for split in ("train", "test"):
        listed = splits_of(tmp_path / "coco", 2014)["train" if split == "train" else "val"]
        given, found = (data.load_split(split) for data in (as_coco, as_faces))
        assert len(found) == len(given) == len(listed) / 5 > 0
        for number in range(len(found)):
            assert found[number].captions == given[number].captions
            assert np.array_equal(np.asarray(found[number].image), np.asarray(given[number].image))


def test_emoji_as_faces_need_the_data_set_of_emoji_coco(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("emoji_faces", tmp_path, tmp_path / "faces")
    assert "captions_train2014.json" in capsys.readouterr().err
