"""Kind: files that the README names, used where the package is installed and not checked out."""

import pytest

from zigma_pl.cli.commands.ablations import build_parser
from zigma_pl.cli.parsing import with_shipped_configs
from zigma_pl.core import shipped
from zigma_pl.core.errors import UserError
from zigma_pl.core.shipped import find_config, shipped_file


@pytest.fixture
def installed(in_tmp, monkeypatch):
    """A folder of shipped files that is not the working directory."""
    folder = in_tmp / "share"
    for name in ("experiments/digits.yaml", "configs/slurm/experiment.sbatch"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("model: {}\n")
    monkeypatch.setattr(shipped, "folders", lambda: (in_tmp / "nowhere", folder))
    return folder


def test_a_shipped_config_is_found_and_said_where(installed, capsys):
    path = installed / "experiments" / "digits.yaml"
    assert find_config("experiments/digits.yaml") == shipped_file("experiments/digits.yaml") == path
    assert str(path) in capsys.readouterr().err
    given = ["fit", "--config", "experiments/digits.yaml", "--config=experiments/digits.yaml", "--config=mine.yaml"]
    assert with_shipped_configs(given) == ["fit", "--config", str(path), f"--config={path}", "--config=mine.yaml"]
    assert build_parser().parse_args(["--config", "experiments/digits.yaml"]).config == [path]


def test_a_file_of_ones_own_comes_first(installed, in_tmp, capsys):
    (in_tmp / "experiments").mkdir()
    (in_tmp / "experiments" / "digits.yaml").write_text("model: {}\n")
    assert not find_config("experiments/digits.yaml").is_absolute()
    assert capsys.readouterr().err == ""


def test_nothing_outside_of_the_shipped_files_is_found(installed):
    (installed.parent / "secret.yaml").write_text("")
    (installed.parent / "elsewhere").mkdir()
    assert str(find_config("../secret.yaml")) == "../secret.yaml"
    with pytest.raises(UserError, match=r"configs/base\.yaml"):
        shipped_file("configs/base.yaml")
