import os
import re
import shlex
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from zigma_pl.core.errors import UserError

TEMPLATE = Path(__file__).parents[2] / "configs" / "slurm" / "experiment.sbatch"


@pytest.fixture
def sbatch(fakes, monkeypatch):
    """An sbatch that writes down its arguments, and refuses jobs of table1_b."""
    fakes.write(
        "bin/sbatch", '#!/bin/sh\necho "$@" >> submitted.txt\ncase "$*" in *table1_b*) echo "no" >&2; exit 1;; esac\n'
    )
    Path("bin/sbatch").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", "bin", prepend=os.pathsep)
    monkeypatch.setattr("zigma_pl.suite.runs.requirements.missing", lambda runs: [])
    return ["--launch=slurm", f"--template={TEMPLATE}"]


def test_each_experiment_that_is_to_be_done_becomes_a_job(fakes, sbatch, capsys):
    assert fakes.run("--names", "table1x_a") == 0
    assert fakes.run(*sbatch, "--names", "table1_a", "table1x_a", "--seeds", "0", "1") == 0
    submitted = Path("submitted.txt").read_text().splitlines()
    assert [re.search(r"--job-name=(\S+)", line)[1] for line in submitted] == [
        "zigma-smoke-table1_a",
        "zigma-smoke-table1_a_seed1",
        "zigma-smoke-table1x_a_seed1",
    ]
    assert all("--dependency=singleton" in line for line in submitted)
    output = re.search(r"--output=(\S+)", submitted[0])[1]
    assert Path(output).parent.is_dir()


def test_a_job_given_its_arguments_runs_its_experiment(fakes, sbatch):
    fakes.write("mine.yaml", "ema: {decay: 0.5}\n")
    assert fakes.run(*sbatch, "--names", "table1_a", "--config", "mine.yaml") == 0
    _, arguments = Path("submitted.txt").read_text().split(str(TEMPLATE))
    fakes.calls()
    assert fakes.run(*shlex.split(arguments), "--launch", "local", "--through", "env") == 0
    assert fakes.calls() == ["fit table1_a", "test table1_a from end.ckpt"]
    assert fakes.run("--names", "table1_a", "--config", "mine.yaml") == 0
    assert fakes.calls() == []  # it is the same run


def test_a_refused_job_is_told(fakes, sbatch, capsys):
    assert fakes.run(*sbatch, "--table", "1") == 1
    assert "\nno\n" in capsys.readouterr().out


def test_dry_run_shows_commands_and_submits_nothing(fakes, sbatch, capsys):
    assert fakes.run(*sbatch, "--table", "1", "--dry_run") == 0
    assert len(re.findall(r"^\$ sbatch .*--names=table1_", capsys.readouterr().out, re.MULTILINE)) == 2
    assert not Path("submitted.txt").exists()
    assert not Path("logs").exists()


def test_without_template_or_slurm_there_is_one_line(fakes, sbatch, monkeypatch):
    with pytest.raises(UserError, match=r"nowhere\.sbatch"):
        fakes.run("--launch=slurm", "--template=nowhere.sbatch")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="sbatch"):
        fakes.run(*sbatch)


PREEMPTED_PYTHON = """#!/bin/sh
trap 'exit 75' USR1
echo "$@" > arguments.txt
while :; do sleep 0.02; done
"""


def test_the_template_puts_the_job_back_when_its_time_is_up(in_tmp, monkeypatch):
    scripts = {"python": PREEMPTED_PYTHON, "scontrol": '#!/bin/sh\necho "$@" > scontrol.txt\n'}
    Path("bin").mkdir()
    for name, text in scripts.items():
        Path("bin", name).write_text(text)
        Path("bin", name).chmod(stat.S_IRWXU)
    Path(".venv/bin").mkdir(parents=True)
    Path(".venv/bin/activate").touch()
    monkeypatch.setenv("PATH", str(Path("bin").resolve()), prepend=os.pathsep)
    environment = os.environ | {"SLURM_SUBMIT_DIR": str(in_tmp), "SLURM_JOB_ID": "7"}
    job = subprocess.Popen(["bash", TEMPLATE, "--names=a"], env=environment)
    while not Path("arguments.txt").exists():
        time.sleep(0.02)
    time.sleep(0.1)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=10) == 75
    assert Path("scontrol.txt").read_text() == "requeue 7\n"
    assert Path("arguments.txt").read_text().startswith("-m zigma_pl ablations --names=a --launch local")
    assert "#SBATCH --signal=B:USR1" in TEMPLATE.read_text()
