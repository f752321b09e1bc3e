"""Every experiment of experiments/, found by glob: a new experiment needs no new test."""

import json
from collections import defaultdict
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from backbones import tiny

from zigma_pl.cli.main import main
from zigma_pl.evaluation.record import read_result, record_path
from zigma_pl.suite.runs.composed import compose
from zigma_pl.suite.runs.experiment_files import ExperimentFile, find_experiments, overlay_of

REPOSITORY = Path(__file__).parents[1]
EXPERIMENTS = find_experiments(REPOSITORY / "experiments")
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


def config_of(experiment: ExperimentFile):
    return compose([experiment.path])


def choices_of(experiment: ExperimentFile):
    """Return the classes, modes and other strings that an experiment chooses, each with its option.

    Numbers and switches are left out, and so is what golden/test_traces.py covers: objective, scan and positions. That
    test builds and trains every experiment's network; what only a run has are data, optimiser, sampler, callbacks and
    the Trainer's options.
    """
    config = config_of(experiment)
    config["data"].get("init_args", {}).pop("root", None)
    config["model"].pop("objective", None)
    for name in ("scan", "position_embedding"):
        config["model"]["backbone"]["init_args"].pop(name, None)
    return set(strings_of(config))


def strings_of(options, name=""):
    if isinstance(options, dict):
        for key, value in options.items():
            yield from strings_of(value, f"{name}.{key}")
    elif isinstance(options, list):
        for value in options:
            yield from strings_of(value, name)
    elif isinstance(options, str):
        yield f"{name}={options}"


def covering(experiments):
    """Return few experiments that together make every choice that any of them makes."""
    choices = {experiment: choices_of(experiment) for experiment in experiments}
    missing, chosen = set().union(*choices.values()), []
    while missing:
        chosen.append(max(choices, key=lambda experiment: len(choices[experiment] & missing)))
        missing -= choices[chosen[-1]]
    return chosen


COVERING = covering(EXPERIMENTS)


def data_of(experiment: ExperimentFile):
    return config_of(experiment)["data"]["class_path"]


WITH_FID = {data_of(experiment): experiment for experiment in COVERING}.values()
WITHOUT_FID = "--scorer.metrics=[kid_lite,precision_lite,recall_lite]"


def num_parameters_of(experiment: ExperimentFile):
    """Count the parameters of the backbone at its own size; the data module would need files of the autoencoder."""
    config, data = config_of(experiment)["model"]["backbone"], config_of(experiment)["data"]["init_args"]
    if config["class_path"] == "zigma_pl.backbones.ZigMa":  # each layer has one order, which has no parameters
        config["init_args"].pop("scan", None)
    side = data["image_size_px"] // 8
    of_data = {
        "in_channels": 4,
        "latent_height": side,
        "latent_width": side,
        "latent_frames": data.get("num_frames"),
        "num_classes": 101 if experiment.prefix == "table4" else None,
        "caption_dim": 768 if "text_encoder" in data else None,
    }
    return num_parameters(config["class_path"], json.dumps(config["init_args"] | of_data))


@cache
def num_parameters(class_path, options):
    """Cached, because experiments that differ in training alone have the same backbone."""
    module_name, _, class_name = class_path.rpartition(".")
    with tiny.without_values():
        return getattr(import_module(module_name), class_name).from_config(json.loads(options)).num_parameters()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder shared by all runs, so that synthetic data and features of real images are made once."""
    return tmp_path_factory.mktemp("experiments")


@pytest.mark.parametrize("experiment", COVERING, ids=lambda experiment: experiment.name)
def test_experiment_trains_samples_and_is_scored(experiment, folder, monkeypatch):
    monkeypatch.chdir(folder)
    overlay = overlay_of(experiment, "smoke", REPOSITORY / "configs" / "scale")
    assert overlay is not None
    files = ["--config", str(experiment.path), "--config", str(overlay)]
    synthetic = [f"--data.init_args.root=data/{experiment.prefix}", "--data.init_args.num_synthetic_items=40"]
    options = [*files, *TINY, *(synthetic if experiment.prefix else DIGITS)]
    if experiment not in WITH_FID and data_of(experiment) != "zigma_pl.data.UCF101":  # it takes half a second
        options.append(WITHOUT_FID)
    assert main(["fit", *options]) == 0
    last = folder / "logs" / experiment.name / "version_0" / "checkpoints" / "last.ckpt"
    assert main(["test", *options, "--ckpt_path", str(last)]) == 0
    record = read_result(record_path(Path("results"), experiment.name))
    assert (record.row, record.scale, record.training["steps"]) == (experiment.name, "smoke", 3)
    assert record.protocol["num_fake"] == 6
    assert record.scores.keys() > {"validation_loss"}


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_header_of_an_experiment_says_how_to_run_it(experiment):
    assert f"python -m zigma_pl fit --config experiments/{experiment.name}.yaml" in experiment.path.read_text()


def test_backbones_of_a_table_have_as_many_parameters_within_three_per_cent():
    tables = defaultdict(dict)
    for experiment in EXPERIMENTS:
        if experiment.prefix:
            compared = experiment.prefix
            if compared == "table11":  # of several sizes, which end the names
                compared += experiment.name.rpartition("_")[2]
            tables[compared][experiment.name] = num_parameters_of(experiment)
    assert set(tables) >= {
        "table1",
        "table1x",
        "table2",
        "table3",
        "table4",
        "table5",
        "table6",
        "table7",
        "table8",
        "table10",
    }
    assert all(len(numbers) == 2 for table, numbers in tables.items() if table.startswith("table11"))
    for numbers in tables.values():
        for name, number in numbers.items():
            assert abs(number / max(numbers.values()) - 1) < 0.03, (name, numbers)


def test_experiments_of_larger_batches_change_nothing_else():
    larger = [experiment for experiment in EXPERIMENTS if "_batchx" in experiment.name]
    assert len(larger) == 3
    for experiment in larger:
        plain, _, factor = experiment.name.rpartition("_batchx")
        config, reference = config_of(experiment), config_of(ExperimentFile(experiment.path.with_name(f"{plain}.yaml")))
        batch_size = config["data"]["init_args"].pop("batch_size")
        assert batch_size == int(factor) * reference["data"]["init_args"].pop("batch_size")
        assert config == reference
