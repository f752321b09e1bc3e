import pytest

from zigma_pl.core.errors import UserError
from zigma_pl.suite.runs.experiment_files import ExperimentFile, find_experiments, overlay_of


@pytest.fixture
def experiments(tmp_path):
    for name in ("table1_zigzag8", "table1_zigzag10", "table1x_sweep8", "figure4_a", "digits"):
        (tmp_path / f"{name}.yaml").touch()
    return tmp_path


def names(experiments):
    return [experiment.name for experiment in experiments]


def test_experiments_are_found_by_table_and_name(experiments):
    assert names(find_experiments(experiments)) == [
        "digits",
        "figure4_a",
        "table1_zigzag8",
        "table1_zigzag10",
        "table1x_sweep8",
    ]
    assert names(find_experiments(experiments, table="1")) == ["table1_zigzag8", "table1_zigzag10"]
    assert names(find_experiments(experiments, table="1x")) == ["table1x_sweep8"]
    assert names(find_experiments(experiments, patterns=["*zag10", "digits"])) == ["digits", "table1_zigzag10"]


@pytest.mark.parametrize(
    ("options", "parts"),
    [({"table": "7"}, ["table7", "1, 1x"]), ({"patterns": ["zagzig*"]}, ["zagzig*", "table1_zigzag8"])],
)
def test_what_is_not_there_is_named(experiments, options, parts):
    with pytest.raises(UserError) as caught:
        find_experiments(experiments, **options)
    assert all(part in str(caught.value) for part in parts)


def test_overlays_of_experiment_and_table_come_before_that_of_the_scale(tmp_path):
    experiments = {
        name: ExperimentFile(tmp_path / f"{name}.yaml")
        for name in ("table1_a", "table4_a", "table4_b", "table4_c_d", "digits")
    }
    for experiment in experiments.values():
        experiment.path.touch()
    (tmp_path / "smoke").mkdir()
    for name in ("smoke.yaml", "smoke/table4.yaml", "smoke/table4_b.yaml", "smoke/table4_c.yaml"):
        (tmp_path / name).touch()
    found = {name: overlay_of(experiment, "smoke", tmp_path) for name, experiment in experiments.items()}
    assert found.pop("digits") is None  # of no table: needs a file of its own
    assert {name: str(path.relative_to(tmp_path)) for name, path in found.items()} == {
        "table1_a": "smoke.yaml",
        "table4_a": "smoke/table4.yaml",
        "table4_b": "smoke/table4_b.yaml",
        "table4_c_d": "smoke/table4_c.yaml",
    }
    (tmp_path / "smoke" / "digits.yaml").touch()
    assert overlay_of(experiments["digits"], "smoke", tmp_path) == tmp_path / "smoke" / "digits.yaml"
