"""The template for a training run under SLURM, with a srun that is told to end."""

import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

SRUN = """#!/bin/sh
trap 'exit {status}' USR1
echo $$ > pid.txt
echo "$@" > arguments.txt
while :; do sleep 0.02; done
"""
SLURM = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "mine", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "8"}


@pytest.fixture
def start(in_tmp, repository):
    """Return what starts the template with a srun that ends with a status when it is signalled."""

    def write(path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(stat.S_IRWXU)

    def start(status):
        write(in_tmp / "bin" / "srun", SRUN.format(status=status))
        write(in_tmp / "bin" / "scontrol", '#!/bin/sh\necho "$@" > scontrol.txt\n')
        write(in_tmp / ".venv" / "bin" / "activate", "")
        path = f"{in_tmp / 'bin'}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | SLURM | {"SLURM_SUBMIT_DIR": str(in_tmp), "PATH": path}
        job = subprocess.Popen(["bash", repository / "configs" / "slurm" / "fit.sbatch", "--x=1"], env=environment)
        while not Path("arguments.txt").exists():
            time.sleep(0.02)
        time.sleep(0.1)
        return job

    return start


@pytest.mark.parametrize(("status", "requeued"), [(75, True), (143, True), (0, False)])
def test_job_whose_time_is_up_goes_back_into_the_queue(start, status, requeued):
    job = start(status)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=10) == status
    assert Path("scontrol.txt").exists() == requeued
    if requeued:
        assert Path("scontrol.txt").read_text() == "requeue 7\n"


def test_failed_run_is_not_run_again(start):
    job = start(1)
    os.kill(int(Path("pid.txt").read_text()), signal.SIGUSR1)  # its srun alone
    assert job.wait(timeout=10) == 1
    assert not Path("scontrol.txt").exists()


def test_arguments_are_those_of_slurm_and_of_the_user(start):
    end(start(0))
    expected = "-m zigma_pl fit --x=1 --trainer.num_nodes 2 --trainer.devices 8 --trainer.logger.init_args.name mine"
    assert Path("arguments.txt").read_text().strip().endswith(expected)
    checkpoint = Path("logs", "mine", "version_0", "checkpoints", "step_1.ckpt")
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    Path("arguments.txt").unlink()
    end(start(0))
    assert Path("arguments.txt").read_text().strip().endswith(f"{expected} --ckpt_path last")


def end(job):
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=10) == 0
