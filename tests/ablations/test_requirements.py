import json
import shutil
import sys
from pathlib import Path

import pytest

from zigma_pl.suite.runs.experiment_files import find_experiments
from zigma_pl.suite.runs.plan import OutputFolders, plan
from zigma_pl.suite.runs.requirements import missing

EXPERIMENT = """
data:
  class_path: zigma_pl.data.{data}
  init_args: {options}
scorer: {{metrics: {metrics}, kid_subset_size: 5}}
trainer: {{max_steps: 1}}
checkpoint: {{every_n_train_steps: 1}}
"""
CAPTIONS = {"text_encoder": "clip", "text_encoder_path": "weights/clip-vit-large-patch14"}
LATENTS = {"autoencoder": "weights/sd-vae-ft-ema"}
TINY_SYNTHETIC = {"synthetic": True, "num_synthetic_items": 10, "image_size_px": 8}
SMALL_SYNTHETIC = TINY_SYNTHETIC | {"num_synthetic_items": 40}


@pytest.fixture
def needs(in_tmp):
    """What is missing for experiments, by name (data class, options, metrics)."""

    def lines(**experiments):
        shutil.rmtree("experiments", ignore_errors=True)
        Path("experiments").mkdir()
        Path("paper.yaml").touch()
        for name, (data, options, metrics) in experiments.items():
            text = EXPERIMENT.format(data=data, options=json.dumps(options), metrics=json.dumps(metrics))
            Path(f"experiments/table1_{name}.yaml").write_text(text)
        folders = OutputFolders(Path("logs"), Path("results"))
        return missing(plan(find_experiments(Path("experiments")), "paper", [0], scales=Path(), folders=folders))

    return lines


def test_all_that_is_missing_is_listed_at_once_each_with_its_experiments(needs):
    faces = ("MMCelebAHQ", {"root": "data/faces", **LATENTS, **CAPTIONS}, ["fid", "fdd", "kid"])
    scenes = ("COCO", {"root": "data/coco", **LATENTS, **CAPTIONS}, ["fid"])
    lines = needs(a=faces, b=faces, c=scenes)
    for place, experiments in {
        "'data/faces' does not exist": "(for table1_a, table1_b)",
        "'data/coco' does not exist": "(for table1_c)",
        "weights/sd-vae-ft-ema:": "(for table1_a, table1_b, table1_c)",
        "weights/clip-vit-large-patch14:": "(for table1_a, table1_b, table1_c)",
        "weights fetch fid-inception": "(for table1_a, table1_b, table1_c)",
        "weights fetch dinov2-large": "(for table1_a, table1_b)",
    }.items():
        (line,) = [line for line in lines if place in line]
        assert line.endswith(experiments)
        assert "\n" not in line
    assert len(lines) == 6


def test_nothing_is_missing_for_synthetic_data_with_lite_scores(needs):
    assert needs(a=("MMCelebAHQ", SMALL_SYNTHETIC, None)) == []
    assert needs(a=("Digits", {}, ["fid_lite"])) == []


def test_a_text_encoder_is_not_needed_without_captions(needs):
    assert needs(a=("FacesHQ", TINY_SYNTHETIC | CAPTIONS, ["fid_lite"])) == []


def test_folders_that_are_no_weights_of_ours_are_looked_for_too(needs):
    (line,) = needs(a=("FacesHQ", {**SMALL_SYNTHETIC, "autoencoder": "stabilityai/sd-vae-ft-ema"}, None))
    assert "data.autoencoder: folder 'stabilityai/sd-vae-ft-ema'" in line
    Path("mine").mkdir()
    assert needs(a=("FacesHQ", {**SMALL_SYNTHETIC, "autoencoder": "mine"}, None)) == []


@pytest.mark.parametrize(
    ("experiment", "part"),
    [
        (("Digitz", {}, None), "Digitz"),
        (("Digits", {"batch_sizes": 3}, None), "batch_sizes"),
        (("Digits", {}, ["fvd"]), "fvd does not apply to images"),
        (
            ("FacesHQ", TINY_SYNTHETIC, ["kid_lite"]),
            "kid_lite needs at least 5 samples for its subsets, got 2 real",
        ),
    ],
)
def test_what_cannot_be_looked_at_is_named(needs, experiment, part):
    assert any(part in line for line in needs(a=experiment))


def test_damaged_weights_are_named(needs):
    folder = Path("weights/fid-inception")
    folder.mkdir(parents=True)
    (folder / "weights-inception-2015-12-05-6726825d.pth").write_bytes(b"half of it")
    (line,) = needs(a=("Digits", {}, ["fid"]))
    assert "6726825d.pth is wrong" in line


def test_videos_need_what_decodes_them(needs, monkeypatch):
    experiment = ("UCF101", {**TINY_SYNTHETIC, "num_synthetic_items": 15}, ["frame_fid_lite"])
    assert needs(a=experiment) == []
    monkeypatch.setitem(sys.modules, "av", None)
    (line,) = needs(a=experiment)
    assert 'pip install "zigma_pl[video]"' in line
