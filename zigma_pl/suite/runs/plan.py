"""Runs: an experiment at a scale with a seed, its files and commands, and whether it is finished."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from zigma_pl.core.errors import UserError
from zigma_pl.core.files import whole_file
from zigma_pl.core.shipped import shipped_file
from zigma_pl.evaluation.record import ResultRecord, read_result, record_path
from zigma_pl.suite.runs.composed import compose, differences, fingerprint, option, without
from zigma_pl.suite.runs.experiment_files import ExperimentFile, overlay_of
from zigma_pl.training.checkpoints.archive import read_step
from zigma_pl.training.checkpoints.newest import CHECKPOINT_FOLDER, LAST_LINK, newest_checkpoint

PROGRAM = (sys.executable, "-m", "zigma_pl")
OWN_SCALE = "own"  # experiments are run as they are
_DEFAULT_SEED = 0  # of configs/base.yaml; runs with it have no suffix
# Options that do not affect the weights.
_WITHOUT_EFFECT_ON_WEIGHTS = ("scorer", "samples", "preview", "model.sampler", "model.guidance")


@dataclass(frozen=True)
class OutputFolders:
    """Output folders of a scale.

    logs: checkpoints, curves and output, `<logs>/<run>/config_<hash>/`.
    results: records, `<results>/<run>.json`.
    """

    logs: Path
    results: Path


@dataclass(frozen=True)
class Run:
    """An experiment at a scale with a seed.

    Args:
        experiment: the experiment.
        scale: name of the scale.
        seed: value of seed_everything.
        files: the configs; later ones are merged over earlier ones.
        folders: where the outputs are written.
    """

    experiment: ExperimentFile
    scale: str
    seed: int
    files: tuple[Path, ...]
    folders: OutputFolders

    @property
    def name(self) -> str:
        """Name of the experiment, with the seed unless it is the default: table1_sweep, table1_sweep_seed1."""
        return self.experiment.name if self.seed == _DEFAULT_SEED else f"{self.experiment.name}_seed{self.seed}"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The merged options."""
        return {**compose([shipped_file("configs/base.yaml"), *self.files]), "seed_everything": self.seed}

    @property
    def log_folder(self) -> Path:
        """Log folder, with a hash of the options, so that no run resumes from a checkpoint of other options."""
        # With a prefix, because the parser of the command line would read a hash of only digits as a number.
        return self.folders.logs / self.name / f"config_{fingerprint(without(self.config, _WITHOUT_EFFECT_ON_WEIGHTS))}"

    @property
    def output(self) -> Path:
        """File with the output of training and scoring."""
        return self.log_folder / "output.txt"

    @property
    def progress(self) -> Path:
        """File with the progress of training or scoring."""
        return self.log_folder / "progress.json"

    @property
    def record(self) -> Path:
        """The result record."""
        return record_path(self.folders.results, self.name)

    @property
    def scored_config(self) -> Path:
        """Copy of the options that the record was made with, beside its images."""
        return self.folders.results / self.name / "composed.yaml"

    @property
    def num_steps(self) -> int:
        """Optimiser steps to train for."""
        return int(option(self.config, "trainer.max_steps"))

    def checkpoint(self) -> Path | None:
        """Return the newest intact checkpoint, if there is one."""
        return newest_checkpoint(self._checkpoints).path

    @property
    def _checkpoints(self) -> Path:
        return self.log_folder / CHECKPOINT_FOLDER

    def is_trained(self) -> bool:
        """Return whether there is a checkpoint of the last step."""
        path = self.checkpoint()
        return path is not None and (read_step(path) or 0) >= self.num_steps

    def record_status(self) -> "RecordStatus":
        """Return whether there is a record, and whether it was made with the options of this run."""
        if not self.record.exists():
            return RecordStatus()
        try:
            record = read_result(self.record)
        except UserError as error:
            return RecordStatus(note=f"{error}: scored again")
        is_ours = self._is_ours(record)
        if not self.scored_config.is_file():
            unknown = RecordStatus(changed=True, note=f"{self.record} was made with unknown options")
            return RecordStatus() if is_ours else unknown
        changes = differences(compose([self.scored_config]), self.config)
        if is_ours and not changes:
            return RecordStatus(is_done=True)
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        what = f" ({'; '.join(changes[:3])}{more})" if changes else ""
        return RecordStatus(changed=True, note=f"{self.record} was made with other options{what}")

    def note_scored(self) -> None:
        """Save the options with which the record was just written, for later comparison.

        Raises:
            UserError: there is no record, or it belongs to another run.
        """
        if not self._is_ours(read_result(self.record)):
            raise UserError(f"{self.record} does not belong to {self.log_folder}: scoring wrote no record")
        with whole_file(self.scored_config) as temporary:
            temporary.write_text(yaml.safe_dump(self.config), encoding="utf-8")

    def _is_ours(self, record: ResultRecord) -> bool:
        log_folder = Path(str(record.training.get("log_folder")))
        return record.scale == self.scale and log_folder.parts[-2:] == self.log_folder.parts[-2:]

    def fit_command(self) -> list[str]:
        """Return the command that trains to the end, resuming from the newest intact checkpoint."""
        resume = [] if self.checkpoint() is None else ["--ckpt_path", "last"]
        return [*self._command("fit"), *resume]

    def test_command(self) -> list[str]:
        """Return the command that scores the trained model and writes the record."""
        scorer = {"name": self.name, "scale": self.scale, "results_dir": self.folders.results}
        options = [f"--scorer.{name}={value}" for name, value in scorer.items()]
        checkpoint = self.checkpoint() or self._checkpoints / LAST_LINK  # the latter only for --dry_run
        return [*self._command("test"), *options, "--ckpt_path", str(checkpoint)]

    def _command(self, subcommand: str) -> list[str]:
        configs = [part for path in self.files for part in ("--config", str(path))]
        logger = {"save_dir": self.log_folder.parents[1], "name": self.name, "version": self.log_folder.name}
        return [
            *(*PROGRAM, subcommand, *configs, f"--seed_everything={self.seed}"),
            *(f"--trainer.logger.init_args.{name}={value}" for name, value in logger.items()),
            "--trainer.enable_progress_bar=false",
            "--trainer.callbacks+=zigma_pl.training.callbacks.progress_file.ProgressFile",
            f"--trainer.callbacks.path={self.progress}",
        ]


@dataclass(frozen=True)
class RecordStatus:
    """State of a run's record.

    is_done: there is a record, made with the options of the run.
    changed: there is a record, made with other options.
    note: message for the user, or "".
    """

    is_done: bool = False
    changed: bool = False
    note: str = ""


def plan(
    experiments: Sequence[ExperimentFile],
    scale: str,
    seeds: Sequence[int],
    *,
    scales: Path,
    folders: OutputFolders,
    base_files: Sequence[Path] = (),
    extra_files: Sequence[Path] = (),
) -> list[Run]:
    """Return a run for each seed of each experiment that has a config at this scale.

    Args:
        experiments: the experiments.
        scale: name of the scale; with OWN_SCALE, experiments are run as they are.
        seeds: values of seed_everything.
        scales: folder of the scales.
        folders: where the outputs are written.
        base_files: configs that the experiments are merged over.
        extra_files: configs that are merged over experiment and scale.

    Raises:
        UserError: the scale does not exist or suits none of the experiments, or an experiment has no last step.
    """
    overlays: dict[ExperimentFile, tuple[Path, ...]] = dict.fromkeys(experiments, ())
    if scale != OWN_SCALE:
        found = {experiment: overlay_of(experiment, scale, scales) for experiment in experiments}
        overlays = {experiment: (overlay,) for experiment, overlay in found.items() if overlay is not None}
    if not overlays:
        known = sorted(path.stem for path in scales.glob("*.yaml"))
        raise UserError(
            f"--scale {scale}: {scales} has no config of this scale for {', '.join(one.name for one in experiments)}: "
            f"scales for all tables are {', '.join(known)}; --scale {OWN_SCALE} runs experiments as they are"
        )
    runs = [
        Run(experiment, scale, seed, (*base_files, experiment.path, *overlay, *extra_files), folders)
        for experiment, overlay in overlays.items()
        for seed in seeds
    ]
    for run in runs:
        if run.num_steps < 1:
            raise UserError(f"{run.name}: trainer.max_steps {run.num_steps} never ends: set it in {run.files[-1]}")
    return runs


def without_copies(runs: Sequence[Run]) -> tuple[list[Run], list[tuple[Run, Run]]]:
    """Split runs into those to do, and copies: runs whose config equals an earlier one's of the same table.

    A scale can make experiments equal: one that sets the size of the images has no use for a table's larger images.

    Returns: the runs to do, and each copy with the run that it equals.
    """
    first: dict[tuple[str | None, str], Run] = {}
    copies = []
    for run in runs:
        original = first.setdefault((run.experiment.prefix, fingerprint(run.config)), run)
        if original is not run:
            copies.append((run, original))
    return list(first.values()), copies
