"""One row at one scale with one seed: where its files are, what is done of it, and the commands that do the rest."""

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
from zigma_pl.evaluation.record import ResultRecord, read_record, record_path
from zigma_pl.suite.runs.composed import compose, differences, fingerprint, option, without
from zigma_pl.suite.runs.rows import Row, overlay_of
from zigma_pl.training.checkpoints.archive import read_step
from zigma_pl.training.checkpoints.newest import CHECKPOINT_FOLDER, LAST_LINK, newest_checkpoint

PROGRAM = (sys.executable, "-m", "zigma_pl")
_OWN_SEED = 0  # of configs/base.yaml; rows of this seed go without a suffix
_AFTER_TRAINING = ("scorer", "samples", "model.sampler", "model.guidance")  # options that change no checkpoint


@dataclass(frozen=True)
class Places:
    """Folders of a scale.

    logs: checkpoints, curves and output, `<logs>/<run>/config_<hash>/`.
    results: the records, `<results>/<run>.json`.
    """

    logs: Path
    results: Path


@dataclass(frozen=True)
class Run:
    """A row at a scale with a seed.

    Args:
        row: the row.
        scale: name of the scale.
        seed: seed of everything.
        files: the configuration files, later ones laid over earlier ones.
        places: where its files go.
    """

    row: Row
    scale: str
    seed: int
    files: tuple[Path, ...]
    places: Places

    @property
    def name(self) -> str:
        """Name of the row, with the seed where it is not the rows' own: table1_sweep, table1_sweep_seed1."""
        return self.row.name if self.seed == _OWN_SEED else f"{self.row.name}_seed{self.seed}"

    @cached_property
    def config(self) -> dict[str, Any]:
        """What the files say together."""
        return {**compose([shipped_file("configs/base.yaml"), *self.files]), "seed_everything": self.seed}

    @property
    def log_folder(self) -> Path:
        """Folder of what is trained in this way alone, so that no run goes on from the checkpoint of another."""
        # Not the hash alone: one of digits only is a number to the command line's parser.
        return self.places.logs / self.name / f"config_{fingerprint(without(self.config, _AFTER_TRAINING))}"

    @property
    def output(self) -> Path:
        """What training and scoring print."""
        return self.log_folder / "output.txt"

    @property
    def progress(self) -> Path:
        """How far they have come."""
        return self.log_folder / "progress.json"

    @property
    def record(self) -> Path:
        """The result record."""
        return record_path(self.places.results, self.name)

    @property
    def scored_config(self) -> Path:
        """The configuration that the record is of, beside its pictures."""
        return self.places.results / self.name / "composed.yaml"

    @property
    def num_steps(self) -> int:
        """Optimiser steps to train for."""
        return int(option(self.config, "trainer.max_steps"))

    def checkpoint(self) -> Path | None:
        """Return the newest whole checkpoint; a damaged one is passed over."""
        return newest_checkpoint(self._checkpoints).path

    @property
    def _checkpoints(self) -> Path:
        return self.log_folder / CHECKPOINT_FOLDER

    def is_trained(self) -> bool:
        """Whether there is a checkpoint of the last step."""
        path = self.checkpoint()
        return path is not None and (read_step(path) or 0) >= self.num_steps

    def found(self) -> "Found":
        """Look at the record, if there is one."""
        if not self.record.exists():
            return Found()
        try:
            record = read_record(self.record)
        except UserError as error:
            return Found(note=f"{error}: scored again")
        is_ours = self._is_ours(record)
        if not self.scored_config.is_file():
            return Found() if is_ours else Found(changed=True, note=f"{self.record} is of an unknown configuration")
        changes = differences(compose([self.scored_config]), self.config)
        if is_ours and not changes:
            return Found(is_done=True)
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        what = f" ({'; '.join(changes[:3])}{more})" if changes else ""
        return Found(changed=True, note=f"{self.record} is of another configuration{what}")

    def note_scored(self) -> None:
        """Keep the configuration of the record that was just written, to tell later whether it is still the same.

        Raises:
            UserError: there is no record, or one of something else.
        """
        if not self._is_ours(read_record(self.record)):
            raise UserError(f"{self.record} is not of {self.log_folder}: scoring has written no record")
        with whole_file(self.scored_config) as temporary:
            temporary.write_text(yaml.safe_dump(self.config), encoding="utf-8")

    def _is_ours(self, record: ResultRecord) -> bool:
        log_folder = Path(str(record.training.get("log_folder")))
        return record.scale == self.scale and log_folder.parts[-2:] == self.log_folder.parts[-2:]

    def fit_command(self) -> list[str]:
        """Return the command that trains to the end, from the newest whole checkpoint if there is one."""
        go_on = [] if self.checkpoint() is None else ["--ckpt_path", "last"]
        return [*self._command("fit"), *go_on]

    def test_command(self) -> list[str]:
        """Return the command that scores the trained row and writes the record."""
        scorer = {"row": self.name, "scale": self.scale, "results_dir": self.places.results}
        options = [f"--scorer.{name}={value}" for name, value in scorer.items()]
        checkpoint = self.checkpoint() or self._checkpoints / LAST_LINK  # the latter to be shown only
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
class Found:
    """What was found of a run's record.

    is_done: there is one, of this configuration.
    changed: there is one, of another configuration.
    note: a line for people, if there is something to say.
    """

    is_done: bool = False
    changed: bool = False
    note: str = ""


def plan(
    rows: Sequence[Row],
    scale: str,
    seeds: Sequence[int],
    *,
    scales: Path,
    places: Places,
    extra_files: Sequence[Path] = (),
) -> list[Run]:
    """Return a run for each seed of each row that the scale is for, all seeds of a row side by side.

    Raises:
        UserError: there is no such scale, it is for none of the rows, or a row cannot be trained to its end.
    """
    overlays = {row: overlay_of(row, scale, scales) for row in rows}
    if not any(overlays.values()):
        known = sorted(path.stem for path in scales.glob("*.yaml"))
        raise UserError(
            f"--scale {scale}: no file of {scales} is for {', '.join(row.name for row in rows)}; scales of all rows of "
            f"tables are {', '.join(known)}"
        )
    runs = [
        Run(row, scale, seed, (row.path, overlay, *extra_files), places)
        for row, overlay in overlays.items()
        if overlay is not None
        for seed in seeds
    ]
    for run in runs:
        if run.num_steps < 1:
            raise UserError(f"{run.name}: trainer.max_steps {run.num_steps} has no end; set it in {run.files[1]}")
    return runs
