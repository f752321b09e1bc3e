"""The scales as shipped, laid over the experiments as shipped."""

import re
from configparser import ConfigParser
from pathlib import Path

import pytest
import torch

from zigma_pl.backbones import ZigMa
from zigma_pl.suite.runs.composed import compose, differences
from zigma_pl.suite.runs.experiment_files import find_experiments, overlay_of
from zigma_pl.suite.runs.plan import OutputFolders, plan, without_copies

REPOSITORY = Path(__file__).parents[2]
SCALES = REPOSITORY / "configs" / "scale"


@pytest.fixture(scope="module", params=["smoke", "pilot", "pilot4096", "h100", "paper"])
def runs(request):
    experiments = find_experiments(REPOSITORY / "experiments")
    return plan(experiments, request.param, [0], scales=SCALES, folders=OutputFolders(Path("logs"), Path("results")))


def test_every_experiment_of_a_table_of_the_paper_runs_at_every_scale(runs):
    experiments = find_experiments(REPOSITORY / "experiments")
    ours = {"table7", "table8", "table10", "table11", None}
    tables = {experiment.name for experiment in experiments if experiment.prefix not in ours}
    assert len(tables) > 30
    assert tables <= {run.experiment.name for run in runs}


@pytest.mark.parametrize("patterns", [("table7_*",), ("table8_*", "table10_*", "table11_*")], ids=str)
@pytest.mark.parametrize("scale", ["smoke", "pilot"])
def test_every_experiment_of_our_tables_runs_at_small_scales(scale, patterns):
    experiments = find_experiments(REPOSITORY / "experiments", patterns=patterns)
    folders = OutputFolders(Path("logs"), Path("results"))
    planned = plan(experiments, scale, [0], scales=SCALES, folders=folders)
    assert [run.experiment for run in planned] == experiments
    copies = [run.experiment.name for run, _ in without_copies(planned)[1]]
    # No two of them are equal, but the sizes of table 11, which are all the same in a smoke test.
    assert all(scale == "smoke" and name.startswith("table11_") for name in copies)


@pytest.mark.parametrize(("scale", "side", "channels"), [("pilot", 64, 3), ("smoke", 32, 3)])
def test_mixers_of_table_7_have_as_many_parameters_within_three_per_cent(scale, side, channels):
    experiments = find_experiments(REPOSITORY / "experiments", table="7")
    folders = OutputFolders(Path("logs"), Path("results"))
    numbers = {}
    for run in plan(experiments, scale, [0], scales=SCALES, folders=folders):
        options = run.config["model"]["backbone"]["init_args"] | {"caption_dim": 768}
        of_data = {"in_channels": channels, "latent_height": side, "latent_width": side}
        with torch.device("meta"):
            numbers[run.name] = ZigMa.from_config(options | of_data).num_parameters()
    assert len(numbers) == len(experiments)
    for name, number in numbers.items():
        assert abs(number / numbers["table7_mamba1_zigzag8"] - 1) < 0.03, (name, numbers)


def test_a_scale_that_would_replace_the_optimizer_of_an_experiment_is_not_for_it():
    muon, sweep = find_experiments(REPOSITORY / "experiments", patterns=("table8_muon_1e3", "table1_sweep"))[::-1]
    assert overlay_of(sweep, "h100", SCALES) == SCALES / "h100.yaml"
    assert overlay_of(muon, "h100", SCALES) is None


def named(change):
    """Return the class paths in a description of options."""
    return set(re.findall(r"[a-z_]+(?:\.\w+)+", change.partition("class_path")[2]))


def test_a_scale_changes_no_class_and_names_itself(runs):
    for run in runs:
        changes = differences(compose([run.experiment.path]), run.config)
        # A scale may set a class that an experiment leaves at its default, such as the sampler.
        classes = [change for change in changes if "class_path" in change and " absent -> " not in change]
        # A plan of mixers may have another length or other numbers, but not other classes.
        before_and_after = [change.split(" -> ") for change in classes]
        assert all(named(before) == named(after) for before, after in before_and_after), classes
        assert run.config["scorer"]["scale"] == run.scale


def test_experiments_that_a_scale_makes_equal_run_once(runs):
    distinct, copies = without_copies(runs)
    assert len(distinct) + len(copies) == len(runs)
    at_512 = {run.name for run in runs if run.name.endswith("_512")}
    skipped = {copy.name: original.name for copy, original in copies}
    if runs[0].scale == "paper":
        assert skipped == {}
    else:
        assert {name: skipped[name] for name in at_512} == {name: name.removesuffix("_512") for name in at_512}


def test_experiments_of_a_table_see_the_same_number_of_samples(runs):
    seen = {}
    for run in runs:
        if run.experiment.prefix is None:
            continue
        batch_size = run.config["data"]["init_args"]["batch_size"]
        seen.setdefault(run.experiment.prefix, set()).add(run.num_steps * batch_size)
    if runs[0].scale != "paper":
        assert all(len(numbers) == 1 for numbers in seen.values())


def test_subsets_of_samples_fit_into_synthetic_data():
    smoke = plan(
        find_experiments(REPOSITORY / "experiments"),
        "smoke",
        [0],
        scales=SCALES,
        folders=OutputFolders(Path("logs"), Path("results")),
    )
    synthetic = [run.config["scorer"] for run in smoke if run.config["data"]["init_args"].get("synthetic")]
    assert len(synthetic) > 30
    num_drawn = 40  # held-out images of the smallest synthetic set
    assert all(scorer["kid_subset_size"] <= min(scorer["num_samples"], num_drawn) for scorer in synthetic)


def test_no_file_of_a_scale_is_for_nothing():
    experiments = {experiment.name: experiment.prefix for experiment in find_experiments(REPOSITORY / "experiments")}
    special = [path.stem for path in SCALES.glob("*/*.yaml")]
    assert special
    words = [name.split("_") for name, table in experiments.items() if table]
    starts = {"_".join(parts[:count]) for parts in words for count in range(1, len(parts) + 1)}
    assert all(name in {*experiments, *starts} for name in special)
    assert all(re.fullmatch(r"[a-z0-9]+", path.stem) for path in SCALES.glob("*.yaml"))


def test_the_deterministic_overlay_changes_that_alone():
    experiment = REPOSITORY / "experiments" / "table1_zigzag8.yaml"
    changed = differences(compose([experiment]), compose([experiment, SCALES.parent / "deterministic.yaml"]))
    assert len(changed) == 1
    assert "trainer.deterministic" in changed[0]
    assert changed[0].endswith("-> warn")


def test_loss_only_leaves_out_samples_alone():
    before = compose([SCALES / "pilot.yaml"])
    changed = differences(before, compose([SCALES / "pilot.yaml", SCALES.parent / "loss_only.yaml"]))
    assert changed == ["preview.num_samples 16 -> 0", "scorer.num_samples 5000 -> 0"]


@pytest.mark.parametrize(
    ("data", "prefix"), [("portraits", "table1"), ("emoji_coco", "table3"), ("emoji_ucf101", "table4")]
)
def test_data_overlays_name_their_drawings(data, prefix):
    experiments = [
        experiment for experiment in find_experiments(REPOSITORY / "experiments") if experiment.prefix == prefix
    ]
    overlays = [SCALES.parent / "data" / f"{data}.yaml"]
    folders = OutputFolders(Path("logs"), Path("results"))
    for run in plan(experiments, "pilot", [0], scales=SCALES, folders=folders, extra_files=overlays):
        assert run.config["data"]["init_args"]["root"].startswith("data/synthetic/")
        assert run.config["scorer"]["data_note"]
        assert run.config["trainer"]["max_steps"] == run.num_steps == (1500 if prefix == "table4" else 2000)
        seen = differences(compose([run.experiment.path]), run.config)
        assert not [change for change in seen if "class_path" in change and " absent -> " not in change]


@pytest.mark.parametrize(
    ("scale", "differs_in"),
    [
        ("pilot4096", {"patch_size", "batch_size", "num_samples"}),
        ("pilotemoji", {"root", "data_note"}),
        ("pilotfashion", {"patch_size", "root", "image_size_px", "data_note", "num_samples"}),
        ("pilotmamba2", {"class_path", "num_samples"}),
        ("pilot/table6_dit", {"depth"}),
        ("pilot/table6_uvit", {"depth"}),
    ],
)
def test_pilots_have_the_model_of_the_pilot(scale, differs_in):
    pilot, other = (compose([SCALES / f"{name}.yaml"]) for name in ("pilot", scale))
    changed = {change.split()[0].rsplit(".", 1)[-1] for change in differences(pilot, other)}
    is_shorter = scale in ("pilot4096", "pilotfashion")
    training = {"max_steps", "every_n_train_steps", "every_n_validations"} if is_shorter else set()
    assert changed == differs_in | (set() if "/" in scale else {"scale"}) | training


def test_every_configuration_is_installed():
    setup = ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    patterns = [pattern for pattern in setup["options.data_files"].values() if pattern.startswith("configs/")]
    installed = {path for pattern in patterns for path in REPOSITORY.glob(pattern) if path.is_file()}
    assert installed == {path for path in (REPOSITORY / "configs").rglob("*") if path.is_file()}
