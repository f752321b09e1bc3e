import json
import subprocess
import sys
from pathlib import Path

import pytest
from processes import Processes, command_line

from zigma_pl.cli.commands.ablations import main
from zigma_pl.core.errors import UserError

TINY = """
model:
  backbone: {init_args: {width: 16, depth: 2}}
  sampler: {init_args: {num_steps: 2}}
trainer: {max_steps: 4, val_check_interval: 2, log_every_n_steps: 1}
checkpoint: {every_n_train_steps: 2}
preview: {num_samples: 10}
scorer: {num_samples: 16, metrics: []}  # the lite network is slow
"""


class ForkedProgram:
    """In the place of `subprocess.Popen`, runs a command of this package in a forked process."""

    def __init__(self, command, env, stdout, **options):
        assert command[:3] == [sys.executable, "-m", "zigma_pl"]
        self._process = Processes("program", Path.cwd(), (command_line, *command[3:]), environments=[env])

    def wait(self):
        return self._process.statuses()[0]


def test_an_experiment_is_trained_scored_continued_and_reported(in_tmp, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "Popen", ForkedProgram)
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_tmp / "cache"))
    Path("tiny.yaml").write_text(TINY)
    options = ["--names", "digits", "--jobs", "1", "--config", "tiny.yaml", "--no_report"]
    assert main(options) == 0
    record = json.loads(Path("results/smoke/digits.json").read_text())
    assert (record["row"], record["scale"]) == ("digits", "smoke")
    assert record["training"]["steps"] == 4
    assert record["scores"].keys() == {"validation_loss", "velocity_loss"}
    assert Path("results/smoke/digits/grid.png").is_file()
    (progress,) = Path("logs/smoke/digits").glob("*/progress.json")
    assert json.loads(progress.read_text())["phase"] == "sampling"

    (last,) = progress.parent.glob("checkpoints/last.ckpt")
    trained = last.stat().st_mtime
    Path("results/smoke/digits.json").unlink()
    assert main(options) == 0  # scores again, and does not train again
    assert last.stat().st_mtime == trained
    assert json.loads(Path("results/smoke/digits.json").read_text())["scores"] == record["scores"]


def test_it_ends_with_tables_and_report(in_tmp, monkeypatch, capsys):
    called = []

    def fail(argv):
        called.append(argv)
        raise UserError("results/half.json is no whole result record")

    monkeypatch.setattr("zigma_pl.cli.commands.tables.main", fail)
    monkeypatch.setattr("zigma_pl.cli.commands.ablations._run_here", lambda jobs, options: None)
    monkeypatch.setattr("zigma_pl.suite.runs.requirements.missing", lambda runs: [])
    assert main(["--names", "digits"]) == 1
    (argv,) = called
    assert argv[0] == "--results=results"
    assert "half.json" in capsys.readouterr().err


def test_what_is_missing_is_listed_before_anything_starts(in_tmp, monkeypatch, capsys):
    monkeypatch.setattr("zigma_pl.suite.runs.requirements.missing", lambda runs: ["data/x is missing", "weights/y too"])
    assert main(["--scale", "paper", "--table", "1"]) == 1
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith("error: ")
    assert err[1:] == ["  data/x is missing", "  weights/y too"]
    assert not Path("logs").exists()


def test_dry_run_shows_the_commands_of_each_experiment(in_tmp, capsys):
    assert main(["--names", "table1_sweep", "--dry_run"]) == 0
    fit, test = [line for line in capsys.readouterr().out.splitlines() if line.startswith("$ ")]
    assert " fit --config " in fit
    assert "smoke.yaml" in fit
    assert "--ckpt_path" not in fit
    assert test.endswith("checkpoints/last.ckpt")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--scale", "huge"], "h100, paper, pilot, pilot4096, pilotemoji, pilotfashion, pilotmamba2, smoke"),
        (["--names", "zag*"], "zag*"),
    ],
)
def test_wrong_options_give_one_line(in_tmp, options, part):
    with pytest.raises(UserError) as caught:
        main(options)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
