"""Submit runs as SLURM jobs, one each, with a batch script that the user can edit."""

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from zigma_pl.core.errors import UserError
from zigma_pl.suite.runs.plan import Run


def sbatch_command(run: Run, template: Path, arguments: Sequence[str]) -> list[str]:
    """Return the command that submits a run.

    SLURM does not run two jobs with the same name at the same time (`--dependency=singleton`). If a run is submitted
    twice, the second job waits for the first and then finds nothing to do.

    Args:
        run: the run.
        template: the batch script.
        arguments: arguments of `python -m zigma_pl ablations` that all jobs share.
    """
    return [
        "sbatch",
        f"--job-name=zigma-{run.scale}-{run.name}",
        "--dependency=singleton",
        f"--output={run.log_folder / 'slurm-%j.txt'}",
        str(template),
        *arguments,
        f"--names={run.experiment.name}",
        f"--seeds={run.seed}",
    ]


def submit(runs: Sequence[Run], template: Path, arguments: Sequence[str], *, dry_run: bool) -> list[Run]:
    """Print the command of each run and, unless `dry_run`, submit it. Returns the runs that SLURM rejected.

    Raises:
        UserError: the template does not exist, or SLURM is not installed.
    """
    if not template.is_file():
        raise UserError(f"--template {template} does not exist: start from configs/slurm/experiment.sbatch")
    rejected = []
    for run in runs:
        command = sbatch_command(run, template, arguments)
        print(f"$ {shlex.join(command)}", flush=True)
        if dry_run:
            continue
        run.log_folder.mkdir(parents=True, exist_ok=True)  # SLURM does not create the folder of the output
        try:
            answer = subprocess.run(command, check=False, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise UserError("--launch slurm: sbatch was not found: run this on a login node of the cluster") from error
        print(answer.stdout.strip() or answer.stderr.strip())
        if answer.returncode:
            rejected.append(run)
    return rejected
