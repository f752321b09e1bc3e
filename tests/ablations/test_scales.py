"""The scales as shipped, laid over the rows as shipped."""

import re
from configparser import ConfigParser
from pathlib import Path

import pytest

from zigma_pl.suite.runs.composed import compose, differences
from zigma_pl.suite.runs.plan import Places, plan
from zigma_pl.suite.runs.rows import find_rows

REPOSITORY = Path(__file__).parents[2]
SCALES = REPOSITORY / "configs" / "scale"


@pytest.fixture(params=["smoke", "pilot", "pilot4096", "h100", "paper"])
def runs(request):
    rows = find_rows(REPOSITORY / "experiments")
    return plan(rows, request.param, [0], scales=SCALES, places=Places(Path("logs"), Path("results")))


def test_every_row_of_a_table_runs_at_every_scale(runs):
    tables = {path.stem for path in (REPOSITORY / "experiments").glob("table*.yaml")}
    assert tables <= {run.row.name for run in runs}


def test_a_scale_changes_no_class_and_names_itself(runs):
    for run in runs:
        changes = differences(compose([run.row.path]), run.config)
        # What a row leaves to the default may be named by a scale, such as the class of the sampler.
        classes = [change for change in changes if "class_path" in change and " absent -> " not in change]
        assert classes == []
        assert run.config["scorer"]["scale"] == run.scale


def test_rows_of_a_table_see_the_same_number_of_samples(runs):
    seen = {}
    for run in runs:
        if run.row.prefix is None:
            continue
        batch_size = run.config["data"]["init_args"]["batch_size"]
        seen.setdefault(run.row.prefix, set()).add(run.num_steps * batch_size)
    if runs[0].scale != "paper":
        assert all(len(numbers) == 1 for numbers in seen.values())


def test_subsets_of_samples_fit_into_synthetic_data():
    smoke = plan(
        find_rows(REPOSITORY / "experiments"), "smoke", [0], scales=SCALES, places=Places(Path("logs"), Path("results"))
    )
    synthetic = [run.config["scorer"] for run in smoke if run.config["data"]["init_args"].get("synthetic")]
    assert len(synthetic) > 30
    num_drawn = 40  # held-out images of the smallest synthetic set
    assert all(scorer["kid_subset_size"] <= min(scorer["num_samples"], num_drawn) for scorer in synthetic)


def test_no_file_of_a_scale_is_for_nothing():
    rows = {row.name: row.prefix for row in find_rows(REPOSITORY / "experiments")}
    special = [path.stem for path in SCALES.glob("*/*.yaml")]
    assert special
    assert all(name in {*rows, *rows.values()} for name in special)
    assert all(re.fullmatch(r"[a-z0-9]+", path.stem) for path in SCALES.glob("*.yaml"))


def test_the_deterministic_overlay_changes_that_alone():
    row = REPOSITORY / "experiments" / "table1_zigzag8.yaml"
    changed = differences(compose([row]), compose([row, SCALES.parent / "deterministic.yaml"]))
    assert len(changed) == 1
    assert "trainer.deterministic" in changed[0]
    assert changed[0].endswith("-> warn")


@pytest.mark.parametrize(
    ("data", "prefix"), [("portraits", "table1"), ("emoji_coco", "table3"), ("emoji_ucf101", "table4")]
)
def test_data_overlays_name_their_drawings(data, prefix):
    rows = [row for row in find_rows(REPOSITORY / "experiments") if row.prefix == prefix]
    overlays = [SCALES.parent / "data" / f"{data}.yaml"]
    places = Places(Path("logs"), Path("results"))
    for run in plan(rows, "pilot", [0], scales=SCALES, places=places, extra_files=overlays):
        assert run.config["data"]["init_args"]["root"].startswith("data/synthetic/")
        assert run.config["scorer"]["data_note"]
        assert run.config["trainer"]["max_steps"] == run.num_steps == (1500 if prefix == "table4" else 2000)
        seen = differences(compose([run.row.path]), run.config)
        assert not [change for change in seen if "class_path" in change and " absent -> " not in change]


@pytest.mark.parametrize(
    ("scale", "differs_in"),
    [
        ("pilot4096", {"patch_size", "batch_size", "num_samples"}),
        ("pilotemoji", {"root", "data_note"}),
        ("pilot/table6_dit", {"depth"}),
        ("pilot/table6_uvit", {"depth"}),
    ],
)
def test_pilots_have_the_model_of_the_pilot(scale, differs_in):
    pilot, other = (compose([SCALES / f"{name}.yaml"]) for name in ("pilot", scale))
    changed = {change.split()[0].rsplit(".", 1)[-1] for change in differences(pilot, other)}
    training = {"max_steps", "every_n_train_steps", "every_n_validations"} if scale == "pilot4096" else set()
    assert changed == differs_in | (set() if "/" in scale else {"scale"}) | training


def test_every_configuration_is_installed():
    setup = ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    patterns = [pattern for pattern in setup["options.data_files"].values() if pattern.startswith("configs/")]
    installed = {path for pattern in patterns for path in REPOSITORY.glob(pattern) if path.is_file()}
    assert installed == {path for path in (REPOSITORY / "configs").rglob("*") if path.is_file()}
