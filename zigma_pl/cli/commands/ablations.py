"""`python -m zigma_pl ablations`: train and score all experiments, resuming interrupted runs."""

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
    from zigma_pl.suite.runs.local import TrackedRun
    from zigma_pl.suite.runs.plan import Run

DESCRIPTION = """\
Train each experiment of experiments/ and score it, at a scale: smoke (synthetic data, minutes on a CPU), pilot (64 x
64 pixels, a small model on one GPU; pilot4096 with four times as many tokens; for tables 1 and 1x also pilotemoji
with emoji and pilotfashion with Fashion-MNIST as data, and pilotmamba2 with Mamba-2), h100 (64 x 64 pixels, a larger
model) or paper (as published). A scale is a config configs/scale/SCALE.yaml, merged over the experiment;
configs/scale/SCALE/NAME.yaml replaces it for one experiment, or for those whose names start with NAME and an
underscore, such as table4.yaml for those of table 4.
With --config configs/loss_only.yaml, no samples are generated, and the losses are the only scores. To score the same
runs completely later, run the command without this config and with --again: it does not train again.
For your own configs, use --experiments FOLDER --scale own, which merges nothing over them.
Finished experiments are skipped, and interrupted ones resume from their last checkpoint. Records are written to
results/SCALE/NAME.json (NAME_seed1.json for seed 1), checkpoints, curves and output to logs/SCALE/NAME/config_<hash>/.
"""


def build_parser() -> argparse.ArgumentParser:
    """Describe the options."""
    parser = Parser(prog="python -m zigma_pl ablations", description=DESCRIPTION)
    which = parser.add_argument_group("which experiments")
    which.add_argument(
        "--scale", default="smoke", help="name of a config in configs/scale, or own for none (default: %(default)s)"
    )
    which.add_argument("--table", help="only experiments of this table: 1, 1x, 2, ...")
    which.add_argument(
        "--names",
        nargs="+",
        default=["*"],
        metavar="GLOB",
        help="only experiments whose file names (without .yaml) match",
    )
    which.add_argument(
        "--seeds", nargs="+", type=int, default=[0], metavar="N", help="run each experiment with each seed"
    )
    which.add_argument(
        "--base",
        nargs="+",
        action="extend",
        type=find_config,
        default=[],
        metavar="FILE",
        help="configs with shared options, which the experiments are merged over",
    )
    which.add_argument(
        "--config",
        nargs="+",
        action="extend",
        type=find_config,
        default=[],
        metavar="FILE",
        help="configs merged over experiment and scale, such as one that sets data folders or devices",
    )
    which.add_argument("--again", action="store_true", help="run experiments again if their options changed")
    how = parser.add_argument_group("how")
    how.add_argument(
        "--launch", choices=("local", "slurm"), default="local", help="run here, or submit a SLURM job for each run"
    )
    how.add_argument("--jobs", type=int, help="runs at a time (default: 1; at scale smoke the number of cores)")
    how.add_argument(
        "--through", type=shlex.split, default=[], metavar="COMMAND", help="prefix of the commands, such as srun"
    )
    how.add_argument(
        "--template",
        type=Path,
        default=_seen_from_here(shipped_file("configs/slurm/experiment.sbatch")),
        metavar="FILE",
        help="batch script of the jobs (default: %(default)s)",
    )
    how.add_argument("--dry_run", action="store_true", help="print the commands without running them")
    how.add_argument("--no_report", action="store_true", help="do not write tables and report at the end")
    parser.add_argument(
        "--logs",
        type=Path,
        default=Path("logs"),
        metavar="FOLDER",
        help="folder for checkpoints, curves and output (default: %(default)s)",
    )
    add_sources(parser)
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns 0 if all runs finished, 1 if one failed or files are missing, 75 if preempted."""
    from zigma_pl.suite.runs.local import RunState, track
    from zigma_pl.suite.runs.plan import OWN_SCALE

    options = build_parser().parse_args(argv)
    check_whole_numbers("ablations", jobs=options.jobs)
    for seed in options.seeds:
        check_whole_numbers("ablations", least=0, most=LARGEST_SEED, seeds=seed)
    tracked_runs = [track(run, options.again) for run in _runs(options)]
    for tracked in tracked_runs:
        if tracked.note:
            print(f"{tracked.run.name}: {tracked.note}")
    waiting = [tracked for tracked in tracked_runs if tracked.state is RunState.WAITING]
    num_done = sum(tracked.state is RunState.DONE for tracked in tracked_runs)
    print(f"{len(tracked_runs)} runs at scale {options.scale}: {num_done} finished before, {len(waiting)} to do")
    if options.dry_run and options.launch == "local":
        return _show_commands(waiting)
    if waiting and not options.dry_run and _report_missing([tracked.run for tracked in waiting], options.scale):
        return 1
    if options.launch == "slurm":
        return _submit([tracked.run for tracked in waiting], options)
    _run_here(tracked_runs, options)
    if any(tracked.state is RunState.STOPPED for tracked in tracked_runs):
        print("preempted: run the same command again to resume")
        return PREEMPTED_STATUS
    if options.scale == OWN_SCALE:
        _print_scores([tracked.run for tracked in tracked_runs])
        return 0 if _all_done(tracked_runs) else 1
    is_reported = options.no_report or _make_tables_and_report(options)
    return 0 if _all_done(tracked_runs) and is_reported else 1


def _runs(options: argparse.Namespace) -> "list[Run]":
    from zigma_pl.suite.runs.experiment_files import find_experiments
    from zigma_pl.suite.runs.plan import OutputFolders, plan, without_copies

    planned = plan(
        find_experiments(_seen_from_here(options.experiments), options.table, options.names),
        options.scale,
        list(dict.fromkeys(options.seeds)),
        scales=_seen_from_here(shipped_file("configs/scale/smoke.yaml").parent),
        folders=OutputFolders(options.logs / options.scale, options.results / options.scale),
        base_files=options.base,
        extra_files=options.config,
    )
    runs, copies = without_copies(planned)
    for run, original in copies:
        print(f"{run.name}: equals {original.name} at scale {options.scale}, not run")
    return runs


def _seen_from_here(path: Path) -> Path:
    """Return a path relative to the working directory, if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _show_commands(tracked_runs: "Sequence[TrackedRun]") -> int:
    for tracked in tracked_runs:
        for command in (tracked.run.fit_command(), tracked.run.test_command()):
            print(f"$ {shlex.join(command)}")
    return 0


def _report_missing(runs: "Sequence[Run]", scale: str) -> bool:
    from zigma_pl.suite.runs.requirements import missing

    lines = missing(runs)
    if lines:
        print(f"error: scale {scale} needs files that are missing, so nothing was started:", file=sys.stderr)
        print("\n".join(f"  {line}" for line in lines), file=sys.stderr)
    return bool(lines)


def _submit(runs: "Sequence[Run]", options: argparse.Namespace) -> int:
    from zigma_pl.suite.runs.slurm import submit

    common = [f"--scale={options.scale}", f"--logs={options.logs}", f"--results={options.results}"]
    common += [f"--experiments={options.experiments}", *(f"--base={path}" for path in options.base)]
    common += [f"--config={path}" for path in options.config]
    common += ["--again"] * options.again
    rejected = submit(runs, options.template, common, dry_run=options.dry_run)
    print("when the jobs have ended, run: python -m zigma_pl tables; python -m zigma_pl report")
    return int(bool(rejected))


def _run_here(tracked_runs: "Sequence[TrackedRun]", options: argparse.Namespace) -> None:
    from zigma_pl.suite.runs.local import LocalRunner, RunState, environments
    from zigma_pl.suite.runs.overview import Overview

    num_waiting = sum(tracked.state is RunState.WAITING for tracked in tracked_runs)
    cores = os.cpu_count() or 1
    num_workers = options.jobs or (max(1, min(cores, num_waiting)) if options.scale == "smoke" else 1)
    overview = Overview(tracked_runs, sys.stdout)
    runner = LocalRunner(tracked_runs, num_workers, options.through, environments(num_workers))

    def preempt(number: int, frame: FrameType | None) -> None:
        runner.stop_signal = signal.SIGUSR1  # srun passes it on, unlike SIGTERM
        raise KeyboardInterrupt

    handlers = {number: signal.signal(number, preempt) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        with closing(runner.run()) as polls:
            for _ in polls:
                overview.show()
    except KeyboardInterrupt:
        if runner.stop_signal != signal.SIGUSR1:
            print("stopped: run the same command again to resume")
            raise
        for tracked in tracked_runs:  # those that had not started
            tracked.state = RunState.STOPPED if tracked.state is RunState.WAITING else tracked.state
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        overview.show()


def _make_tables_and_report(options: argparse.Namespace) -> bool:
    from zigma_pl.cli.commands import report, tables

    sources = [f"--results={options.results}", f"--experiments={options.experiments}"]
    try:
        tables.main(sources)
        report.main([*sources, f"--logs={options.logs}"])
    except UserError as error:  # failed runs are reported afterwards
        print(f"error: {error}", file=sys.stderr)
        return False
    return True


def _print_scores(runs: "Sequence[Run]") -> None:
    """Print the scores of each run that has a record; the tables of the shipped experiments do not show them."""
    from zigma_pl.evaluation.record import read_result

    for run in runs:
        if run.record.is_file():
            scores = read_result(run.record).scores.items()
            print(f"{run.name}: {', '.join(f'{name} {score.value:.5g}' for name, score in scores)} ({run.record})")


def _all_done(tracked_runs: "Sequence[TrackedRun]") -> bool:
    """Print which records were kept and which runs failed; returns whether none failed."""
    from zigma_pl.suite.runs.local import RunState

    for tracked in tracked_runs:
        if tracked.state is RunState.ELSEWHERE:
            print(f"{tracked.run.name}: {tracked.note}")
    kept = [tracked.run.name for tracked in tracked_runs if tracked.state is RunState.CHANGED]
    if kept:
        print(f"kept although made with other options: {', '.join(kept)} (--again runs them again)")
    failed = [tracked for tracked in tracked_runs if tracked.state is RunState.FAILED]
    for tracked in failed:
        print(f"\n{tracked.run.name} failed:\n  " + tracked.note.replace("\n", "\n  "), file=sys.stderr)
    if failed:
        names = ", ".join(tracked.run.name for tracked in failed)
        print(f"\nerror: {len(failed)} of {len(tracked_runs)} runs failed: {names}", file=sys.stderr)
    return not failed
