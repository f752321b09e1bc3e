import importlib
import json
import random
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from zigma_pl.data import MMCelebAHQ
from zigma_pl.evaluation.store import Chunk, SampleStore

NUM = 10
SEED = 3


@pytest.fixture
def tool(repository, monkeypatch):
    monkeypatch.syspath_prepend(repository / "tools" / "synthetic")
    return importlib.import_module


@pytest.fixture
def captions(tool):
    return tool("portrait_captions")


def attributes_of_id(values, image_id):
    rng = random.Random(image_id)
    return {name: rng.choice(choices if name == "hair" else (*choices, None)) for name, choices in values.items()}


def colour(image_id):
    return (20 * image_id + 10,) * 3


@pytest.fixture
def drawn(tmp_path, captions):
    """A folder as portraits.mjs writes it, with grey pictures whose level is a function of the id."""
    folder = tmp_path / "drawn"
    folder.mkdir()
    rows = [{"id": image_id, **attributes_of_id(captions.VALUES, image_id)} for image_id in range(NUM)]
    (folder / "attributes.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "CREDITS.txt").write_text("theirs\n")
    for image_id in range(NUM):
        Image.new("RGBA", (16, 16), colour(image_id)).save(folder / f"{image_id}.png")
    return folder


@pytest.fixture
def run(tool, monkeypatch):
    def main(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        tool(name).main()

    return main


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_captions_mention_only_the_attributes_and_differ(captions):
    values_of = {name: set() for name in captions.VALUES}
    for image_id in range(300):
        attributes = attributes_of_id(captions.VALUES, image_id)
        written = captions.write_captions(attributes, random.Random(image_id))
        assert written == captions.write_captions(attributes, random.Random(image_id))
        assert len(set(written)) == 10
        for caption in written:
            mentioned = captions.parse_caption(caption)
            assert mentioned.items() <= attributes.items(), caption
            assert len(mentioned) >= 2
            assert caption.endswith(".")
            assert " a orange" not in caption
            for name, value in mentioned.items():
                values_of[name].add(value)
    omitted = {"facial_hair": {"none"}, "earrings": {"none"}}
    assert values_of == {name: set(values) - omitted.get(name, set()) for name, values in captions.VALUES.items()}


def test_each_attribute_alone_is_parsed_from_its_caption(captions):
    rng = random.Random(0)
    for name, values in captions.VALUES.items():
        for value in values:
            parsed = captions.parse_caption(captions.write_caption({name: value}, rng))
            assert parsed == ({} if name in ("facial_hair", "earrings") and value == "none" else {name: value})
    assert captions.parse_caption("A cat with a hairy blue chair.") == {}


def test_the_drawing_tables_have_words(repository, captions):
    if shutil.which("node") is None:
        pytest.skip("node draws the portraits, and is not installed")
    code = "import('./portrait_styles.mjs').then((tables) => console.log(JSON.stringify(tables)))"
    folder = repository / "tools" / "synthetic"
    tables = json.loads(subprocess.run(["node", "-e", code], cwd=folder, capture_output=True, check=True).stdout)
    assert set(tables["STYLES"]) == set(captions.VALUES["style"])
    drawn = {name: set() for name in captions.VALUES if name != "style"}
    for table in (*tables["STYLES"].values(), {"background": tables["BACKGROUNDS"]}):
        for name in drawn:
            drawn[name] |= set(table.get(name, {}))
        drawn["hair"] |= set(table.get("black_hair", {}))
    assert drawn == {name: set(captions.VALUES[name]) for name in drawn}


def test_layout_is_that_of_the_published_set(tmp_path, drawn, run):
    run("portraits", drawn, tmp_path / "set")
    data = MMCelebAHQ(str(tmp_path / "set"), image_size_px=16)
    faces = {split: data.load_split(split) for split in ("train", "test")}
    assert faces["train"].image_ids == list(range(8))
    assert faces["test"].image_ids == [8, 9]
    for index, image_id in enumerate(faces["train"].image_ids):
        item = faces["train"][index]
        assert np.abs(np.asarray(item.image).astype(int) - colour(image_id)).max() <= 1
        assert len(set(item.captions)) == 10
    assert (tmp_path / "set" / "CREDITS.txt").read_text() == "theirs\n"


def test_the_archive_gives_the_same_set(tmp_path, drawn, run):
    run("portraits", drawn, tmp_path / "small.tar.xz")
    run("portraits", tmp_path / "small.tar.xz", tmp_path / "from_archive")
    run("portraits", drawn, tmp_path / "from_folder")
    assert contents(tmp_path / "from_archive") == contents(tmp_path / "from_folder")


def test_a_value_without_words_and_an_unfinished_drawing_are_refused(tmp_path, drawn, run, capsys):
    table = drawn / "attributes.jsonl"
    table.write_text(table.read_text().replace('"skin": "tan"', '"skin": "azure"'))
    with pytest.raises(SystemExit):
        run("portraits", drawn, tmp_path / "set")
    assert "azure" in capsys.readouterr().err
    table.unlink()
    with pytest.raises(SystemExit):
        run("portraits", drawn, tmp_path / "set")
    assert "attributes.jsonl is missing" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def predict_from_grey(values):
    """Return a fake classifier that is always correct: it computes the id and its attributes from the grey level."""

    def predict(classifier, pictures):
        image_ids = ((pictures.float().mean((1, 2, 3)) - 10) / 20).round().int().tolist()
        shown = [attributes_of_id(values, image_id) for image_id in image_ids]
        return [{name: value or values[name][0] for name, value in of_id.items()} for of_id in shown]

    return predict


@pytest.mark.parametrize("shift", [0, 1])
def test_samples_are_compared_with_their_own_captions(tmp_path, drawn, run, tool, captions, monkeypatch, shift):
    run("portraits", drawn, tmp_path / "set")
    store = SampleStore(tmp_path / "samples", {"conditions": {"seed": SEED}}, 2)
    store.open()
    for number in range(2):  # ids 0 and 1 are the pictures 8 and 9 of the test split, and 2 and 3 again
        greys = torch.tensor([colour(8 + (i + shift) % 2)[0] for i in range(2)], dtype=torch.uint8)
        pictures = greys[:, None, None, None].expand(2, 3, 32, 32).contiguous()
        store.write(number, Chunk(pictures, torch.tensor(store.sample_ids(number)), 1))
    classifier = tool("attribute_classifier")
    monkeypatch.setattr(classifier, "predict", predict_from_grey(captions.VALUES))
    monkeypatch.setattr(classifier, "load_or_train", lambda *_: None)
    out = tmp_path / "accuracies.json"
    run("attribute_classifier", tmp_path / "set", "--classifier", "none", "--samples", store.folder, "--out", out)
    result = json.loads(out.read_text())
    assert (result["num_real"], result["num_samples"]) == (2, 4)
    assert result["real"]["all"]["accuracy"] == result["real_by_captions"]["all"]["accuracy"] == 1
    assert result["real_by_captions"]["all"]["told"] == result["samples"]["all"]["told"]
    assert (result["samples"]["all"]["accuracy"] == 1) == (shift == 0)
    conditions = MMCelebAHQ(str(tmp_path / "set"), image_size_px=16, seed=SEED).held_out_conditions("test", range(4))
    mentioned = Counter(name for caption in conditions.captions for name in captions.parse_caption(caption))
    counts = {name: row["told"] for name, row in result["samples"].items()}
    assert counts == {**mentioned, "all": mentioned.total()}


def test_pictures_that_predict_wrote_are_read(tmp_path, tool, captions, monkeypatch):
    classifier = tool("attribute_classifier")
    all_red = dict.fromkeys(captions.VALUES, "red")
    monkeypatch.setattr(classifier, "predict", lambda _, pictures: [all_red] * len(pictures))
    rows = [{"file": f"{i:08d}.png", "caption": f"A person with {c} hair."} for i, c in enumerate(("red", "blue"))]
    for row in rows:
        Image.new("RGB", (32, 32)).save(tmp_path / row["file"])
    (tmp_path / "samples.json").write_text(json.dumps({"samples": rows}))
    result = classifier.compare(None, [], tmp_path, tmp_path)
    assert result["num_samples"] == 2
    assert result["samples"]["hair_colour"] == {"told": 2, "accuracy": 0.5}


def test_classifier_learns_the_training_split(tmp_path, drawn, run, tool, captions):
    run("portraits", drawn, tmp_path / "set")
    classifier = tool("attribute_classifier")
    trained = classifier.load_or_train(tmp_path / "classifier.pt", tmp_path / "set", 60)
    faces = classifier.FacesOnDisk(tmp_path / "set").split("train")
    real = classifier.accuracies(
        classifier.predict(trained, classifier.pixels(faces)),
        classifier.attributes_of(tmp_path / "set", faces.image_ids),
    )
    assert real["all"]["accuracy"] > 0.9
    again = classifier.load_or_train(tmp_path / "classifier.pt", tmp_path / "nowhere", 0)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), again.parameters(), strict=True))


def test_mirroring_keeps_or_flips_whole_pictures(tool):
    pictures = torch.arange(64 * 6).reshape(64, 1, 2, 3)
    mirrored = tool("attribute_classifier").mirrored_at_random(pictures)
    flipped = (mirrored == pictures.flip(-1)).all((1, 2, 3))
    assert 0 < flipped.sum() < 64
    assert torch.equal(mirrored[~flipped], pictures[~flipped])
