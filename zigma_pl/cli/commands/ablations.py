"""`python -m zigma_pl ablations`: train and score every row of the tables, go on where it was interrupted."""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from zigma_pl.cli.commands.parser import Parser
from zigma_pl.cli.commands.tables import add_sources
from zigma_pl.core.errors import PREEMPTED_STATUS, UserError
from zigma_pl.core.ranges import LARGEST_SEED, check_whole_numbers
from zigma_pl.core.shipped import find_config, shipped_file

if TYPE_CHECKING:
    from zigma_pl.suite.runs.local import Job
    from zigma_pl.suite.runs.plan import Run

DESCRIPTION = """\
Train each row of experiments/ to its end and score it, at a scale: smoke (stand-ins, minutes on a CPU), pilot (64 x 64
pixels, a small model on one GPU; pilot4096 on four times as many tokens, pilotemoji on another data set), h100 (64 x 64
pixels, a larger model), paper (as published). A scale is a file configs/scale/SCALE.yaml laid over the row; a row or
table that needs another has configs/scale/SCALE/ROW.yaml or configs/scale/SCALE/table4.yaml instead. Rows that are done
are not repeated, interrupted ones go on from their last checkpoint. Records are in results/SCALE/ROW.json (with another
seed than 0: ROW_seed1.json), checkpoints, curves and output in logs/SCALE/ROW/config_<hash>/.
"""


def build_parser() -> argparse.ArgumentParser:
    """Describe the options."""
    parser = Parser(prog="python -m zigma_pl ablations", description=DESCRIPTION)
    which = parser.add_argument_group("which rows")
    which.add_argument(
        "--scale", default="smoke", help="a file of configs/scale, or one of your own (default: %(default)s)"
    )
    which.add_argument("--table", help="rows of this table only: 1, 1x, 2, ...")
    which.add_argument("--rows", nargs="+", default=["*"], metavar="GLOB", help="rows of these names only")
    which.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="each row once for each seed")
    which.add_argument(
        "--config",
        nargs="+",
        action="extend",
        type=find_config,
        default=[],
        metavar="FILE",
        help="laid over rows and scale, such as folders of data or devices",
    )
    which.add_argument("--again", action="store_true", help="run anew what was done with another configuration")
    how = parser.add_argument_group("how")
    how.add_argument(
        "--launch", choices=("local", "slurm"), default="local", help="here, or one SLURM job for each row"
    )
    how.add_argument("--jobs", type=int, help="rows at a time (default: 1; at smoke as many as there are cores)")
    how.add_argument("--through", type=shlex.split, default=[], metavar="COMMAND", help="start processes by it: srun")
    how.add_argument(
        "--template",
        type=Path,
        default=_seen_from_here(shipped_file("configs/slurm/row.sbatch")),
        metavar="FILE",
        help="batch script of the jobs, to be edited (default: %(default)s)",
    )
    how.add_argument("--dry_run", action="store_true", help="show the commands, run nothing")
    how.add_argument("--no_report", action="store_true", help="do not make tables and report at the end")
    parser.add_argument("--logs", type=Path, default=Path("logs"), metavar="FOLDER", help="checkpoints, curves, output")
    add_sources(parser)
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns 0 when every row is done, 1 when one failed or something is missing, 75 preempted."""
    from zigma_pl.suite.runs.local import State, job_of

    options = build_parser().parse_args(argv)
    check_whole_numbers("ablations", jobs=options.jobs)
    for seed in options.seeds:
        check_whole_numbers("ablations", least=0, most=LARGEST_SEED, seeds=seed)
    jobs = [job_of(run, options.again) for run in _runs(options)]
    for job in jobs:
        if job.note:
            print(f"{job.run.name}: {job.note}")
    waiting = [job for job in jobs if job.state is State.WAITING]
    num_done = sum(job.state is State.DONE for job in jobs)
    print(f"{len(jobs)} rows at scale {options.scale}: {num_done} done before, {len(waiting)} to do")
    if options.dry_run and options.launch == "local":
        return _show_commands(waiting)
    if waiting and not options.dry_run and _report_missing([job.run for job in waiting], options.scale):
        return 1
    if options.launch == "slurm":
        return _submit(waiting, options)
    _run_here(jobs, options)
    if any(job.state is State.STOPPED for job in jobs):
        print("preempted: the same command goes on from here")
        return PREEMPTED_STATUS
    is_reported = options.no_report or _make_tables_and_report(options)
    return 0 if _all_done(jobs) and is_reported else 1


def _runs(options: argparse.Namespace) -> "list[Run]":
    from zigma_pl.suite.runs.plan import Places, plan
    from zigma_pl.suite.runs.rows import find_rows

    return plan(
        find_rows(_seen_from_here(options.experiments), options.table, options.rows),
        options.scale,
        list(dict.fromkeys(options.seeds)),
        scales=_seen_from_here(shipped_file("configs/scale/smoke.yaml").parent),
        places=Places(options.logs / options.scale, options.results / options.scale),
        extra_files=options.config,
    )


def _seen_from_here(path: Path) -> Path:
    """Return a path as one would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _show_commands(jobs: "Sequence[Job]") -> int:
    for job in jobs:
        for command in (job.run.fit_command(), job.run.test_command()):
            print(f"$ {shlex.join(command)}")
    return 0


def _report_missing(runs: "Sequence[Run]", scale: str) -> bool:
    from zigma_pl.suite.runs.requirements import missing

    lines = missing(runs)
    if lines:
        print(f"error: scale {scale} needs what is not there, so nothing was started:", file=sys.stderr)
        print("\n".join(f"  {line}" for line in lines), file=sys.stderr)
    return bool(lines)


def _submit(jobs: "Sequence[Job]", options: argparse.Namespace) -> int:
    from zigma_pl.suite.runs.slurm import submit

    common = [f"--scale={options.scale}", f"--logs={options.logs}", f"--results={options.results}"]
    common += [f"--experiments={options.experiments}", *(f"--config={path}" for path in options.config)]
    common += ["--again"] * options.again
    refused = submit(jobs, options.template, common, dry_run=options.dry_run)
    print("when the jobs have ended: python -m zigma_pl tables, python -m zigma_pl report")
    return int(bool(refused))


def _run_here(jobs: "Sequence[Job]", options: argparse.Namespace) -> None:
    from zigma_pl.suite.runs.local import LocalRunner, State, environments
    from zigma_pl.suite.runs.overview import Overview

    num_waiting = sum(job.state is State.WAITING for job in jobs)
    cores = os.cpu_count() or 1
    num_workers = options.jobs or (max(1, min(cores, num_waiting)) if options.scale == "smoke" else 1)
    overview = Overview(jobs, sys.stdout)
    runner = LocalRunner(jobs, num_workers, options.through, environments(num_workers))

    def preempt(number: int, frame: FrameType | None) -> None:
        runner.stop_signal = signal.SIGUSR1  # which srun passes on, as it does not SIGTERM
        raise KeyboardInterrupt

    handlers = {number: signal.signal(number, preempt) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        with closing(runner.run()) as looks:
            for _ in looks:
                overview.show()
    except KeyboardInterrupt:
        if runner.stop_signal != signal.SIGUSR1:
            print("stopped: the same command goes on from here")
            raise
        for job in jobs:  # those that were to come
            job.state = State.STOPPED if job.state is State.WAITING else job.state
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        overview.show()


def _make_tables_and_report(options: argparse.Namespace) -> bool:
    from zigma_pl.cli.commands import report, tables

    sources = [f"--results={options.results}", f"--experiments={options.experiments}"]
    try:
        tables.main(sources)
        report.main(sources)
    except UserError as error:  # the rows' own failures are still to be told
        print(f"error: {error}", file=sys.stderr)
        return False
    return True


def _all_done(jobs: "Sequence[Job]") -> bool:
    """Tell what was kept and what failed; returns whether nothing failed."""
    from zigma_pl.suite.runs.local import State

    for job in jobs:
        if job.state is State.ELSEWHERE:
            print(f"{job.run.name}: {job.note}")
    kept = [job.run.name for job in jobs if job.state is State.CHANGED]
    if kept:
        print(f"kept from another configuration: {', '.join(kept)} (--again runs them anew)")
    failed = [job for job in jobs if job.state is State.FAILED]
    for job in failed:
        print(f"\n{job.run.name} failed:\n  " + job.note.replace("\n", "\n  "), file=sys.stderr)
    if failed:
        names = ", ".join(job.run.name for job in failed)
        print(f"\nerror: {len(failed)} of {len(jobs)} rows failed: {names}", file=sys.stderr)
    return not failed
