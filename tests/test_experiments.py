"""Every row of experiments/, found by glob: a new row needs no new test."""

import json
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import pytest
import torch

from zigma_pl.cli.main import main
from zigma_pl.evaluation.record import read_record, record_path
from zigma_pl.suite.runs.composed import compose
from zigma_pl.suite.runs.rows import Row, find_rows, overlay_of

REPOSITORY = Path(__file__).parents[1]
ROWS = find_rows(REPOSITORY / "experiments")
TINY = [
    "--trainer.max_steps=3",
    "--trainer.val_check_interval=3",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--checkpoint.every_n_train_steps=3",
    "--preview.num_samples=2",
    "--model.backbone.init_args.width=16",
    "--model.backbone.init_args.depth=3",
    "--model.backbone.init_args.patch_size=8",
    "--model.sampler.init_args.num_steps=2",
    "--data.init_args.batch_size=2",
    "--scorer.num_samples=6",
    "--scorer.kid_num_subsets=2",
    "--scorer.kid_subset_size=4",
    "--scorer.num_neighbours=1",
    "--scorer.reference_folder=reference",
]
DIGITS = ["--model.backbone.init_args.patch_size=4"]


def config_of(row: Row):
    return compose([row.path])


def kind_of(row: Row):
    """All options of a row but those whose values golden/test_traces.py trains with, in every row."""
    config = config_of(row)
    for name in ("scan", "position_embedding"):
        config["model"]["backbone"]["init_args"].pop(name, None)
    for name in ("batch_size", "image_size_px"):
        config["data"]["init_args"].pop(name, None)
    config.get("trainer", {}).pop("max_steps", None)
    return json.dumps(config, sort_keys=True)


ONE_OF_EACH_KIND = list({kind_of(row): row for row in reversed(ROWS)}.values())[::-1]


def backbone_of(row: Row):
    """The backbone at its own size; to ask the data module would need files of the autoencoder."""
    config, data = config_of(row)["model"]["backbone"], config_of(row)["data"]["init_args"]
    side = data["image_size_px"] // 8
    of_data = {
        "in_channels": 4,
        "latent_height": side,
        "latent_width": side,
        "latent_frames": data.get("num_frames"),
        "num_classes": 101 if row.prefix == "table4" else None,
        "caption_dim": 768 if "text_encoder" in data else None,
    }
    module_name, _, class_name = config["class_path"].rpartition(".")
    with torch.device("meta"):
        return getattr(import_module(module_name), class_name).from_config(config["init_args"] | of_data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the rows run one after the other, so that synthetic data and features of real pictures are made once."""
    return tmp_path_factory.mktemp("rows")


@pytest.mark.parametrize("row", ONE_OF_EACH_KIND, ids=lambda row: row.name)
def test_row_trains_samples_and_is_scored(row, folder, monkeypatch):
    monkeypatch.chdir(folder)
    overlay = overlay_of(row, "smoke", REPOSITORY / "configs" / "scale")
    assert overlay is not None
    files = ["--config", str(row.path), "--config", str(overlay)]
    synthetic = [f"--data.init_args.root=data/{row.prefix}", "--data.init_args.num_synthetic_items=40"]
    options = [*files, *TINY, *(synthetic if row.prefix else DIGITS)]
    assert main(["fit", *options]) == 0
    last = folder / "logs" / row.name / "version_0" / "checkpoints" / "last.ckpt"
    assert main(["test", *options, "--ckpt_path", str(last)]) == 0
    record = read_record(record_path(Path("results"), row.name))
    assert (record.row, record.scale, record.training["steps"]) == (row.name, "smoke", 3)
    assert record.protocol["num_fake"] == 6
    assert record.scores.keys() > {"validation_loss"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_header_of_a_row_says_how_to_run_it(row):
    assert f"python -m zigma_pl fit --config experiments/{row.name}.yaml" in row.path.read_text()


def test_backbones_of_a_table_have_as_many_parameters_within_three_per_cent():
    tables = defaultdict(dict)
    for row in ROWS:
        if row.prefix:
            tables[row.prefix][row.name] = backbone_of(row).num_parameters()
    assert set(tables) >= {"table1", "table1x", "table2", "table3", "table4", "table5", "table6"}
    for numbers in tables.values():
        for name, number in numbers.items():
            assert abs(number / max(numbers.values()) - 1) < 0.03, (name, numbers)


def test_rows_of_larger_batches_change_nothing_else():
    larger = [row for row in ROWS if "_batchx" in row.name]
    assert len(larger) == 3
    for row in larger:
        plain, _, factor = row.name.rpartition("_batchx")
        config, reference = config_of(row), config_of(Row(row.path.with_name(f"{plain}.yaml")))
        batch_size = config["data"]["init_args"].pop("batch_size")
        assert batch_size == int(factor) * reference["data"]["init_args"].pop("batch_size")
        del config["trainer"], reference["trainer"]
        assert config == reference
