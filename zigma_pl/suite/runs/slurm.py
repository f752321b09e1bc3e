"""Runs as SLURM jobs, one each, from a template that the user edits."""

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from zigma_pl.core.errors import UserError
from zigma_pl.suite.runs.local import Job


def sbatch_command(job: Job, template: Path, arguments: Sequence[str]) -> list[str]:
    """Return the command that submits a job.

    Two jobs of one name do not run at the same time (`--dependency=singleton`), so a row that is submitted again waits
    for its first job, and then finds nothing to do.

    Args:
        job: the job.
        template: the batch script.
        arguments: those of `python -m zigma_pl ablations` that the jobs have in common.
    """
    run = job.run
    return [
        "sbatch",
        f"--job-name=zigma-{run.scale}-{run.name}",
        "--dependency=singleton",
        f"--output={run.log_folder / 'slurm-%j.txt'}",
        str(template),
        *arguments,
        f"--rows={run.row.name}",
        f"--seeds={run.seed}",
    ]


def submit(jobs: Sequence[Job], template: Path, arguments: Sequence[str], *, dry_run: bool) -> list[Job]:
    """Submit jobs, showing each command; with `dry_run` show them only. Returns those that were refused.

    Raises:
        UserError: there is no template, or no SLURM.
    """
    if not template.is_file():
        raise UserError(
            f"--template {template}: there is no such file; configs/slurm/row.sbatch is the one to start from"
        )
    refused = []
    for job in jobs:
        command = sbatch_command(job, template, arguments)
        print(f"$ {shlex.join(command)}", flush=True)
        if dry_run:
            continue
        job.run.log_folder.mkdir(parents=True, exist_ok=True)  # SLURM makes no folder for the output
        try:
            answer = subprocess.run(command, check=False, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise UserError("--launch slurm: there is no sbatch here; submit on a login node of the cluster") from error
        print(answer.stdout.strip() or answer.stderr.strip())
        if answer.returncode:
            job.note = answer.stderr.strip()
            refused.append(job)
    return refused
