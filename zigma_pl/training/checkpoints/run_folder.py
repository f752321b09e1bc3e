"""The log folder of a run, `<save_dir>/<name>/version_<n>`, with checkpoints, config.yaml and previews.

The TensorBoard and CSV loggers write into it; without one of them, it is the trainer's `default_root_dir`.
"""

import csv
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from zigma_pl.training.loggers import TensorBoard

LOGS = "logs"  # default parent folder of runs
WITH_FOLDER = (TensorBoardLogger, CSVLogger)
_OPTIONS = ("config.yaml", "hparams.yaml")


def run_folder(trainer: L.Trainer) -> Path:
    """Return the folder of a run, the same on all processes; must be called on every process."""
    folders = [logger.log_dir for logger in trainer.loggers if isinstance(logger, WITH_FOLDER)]
    return Path(trainer.strategy.broadcast(folders[0] if folders else trainer.default_root_dir))


@contextmanager
def no_empty_run(trainer: L.Trainer) -> Iterator[None]:
    """Delete the new folder of a run that fails in this block before its first step, if it contains only options."""
    folder = run_folder(trainer)
    is_new = not folder.exists()
    try:
        yield
    except BaseException:
        if is_new and trainer.is_global_zero and trainer.global_step == 0 and folder.is_dir():
            _remove_empty(trainer, folder)
        raise


def _remove_empty(trainer: L.Trainer, folder: Path) -> None:
    for logger in trainer.loggers:
        logger.finalize("failed")  # closes its file
    if all(path.is_dir() or path.name in _OPTIONS or path.match("events.out.tfevents.*") for path in folder.rglob("*")):
        shutil.rmtree(folder)
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()


def fix_versions(trainer: L.Trainer) -> None:
    """Make all loggers choose their versions now; otherwise a folder created by one is counted by the next."""
    for logger in trainer.loggers:
        if isinstance(logger, WITH_FOLDER):
            _ = logger.version


def has_folder(logger: Any) -> bool:
    """Whether a logger, given by its options, writes into a folder named by its version."""
    class_path = str(logger.get("class_path")) if hasattr(logger, "get") else ""
    return class_path.rpartition(".")[2] in {known.__name__ for known in (*WITH_FOLDER, TensorBoard)}


@dataclass(frozen=True)
class RunFolders:
    """The folders of an experiment's runs.

    Args:
        experiment: parent folder of all runs.
        version: folder name of the run that the options select, None for the next run.
    """

    experiment: Path
    version: str | None = None

    @classmethod
    def of(cls, trainer: Mapping[str, Any], name: str) -> "RunFolders":
        """Determine them from the options of the trainer.

        Args:
            trainer: options of the trainer.
            name: name of the experiment, used if the logger has none.
        """
        given = trainer.get("logger")
        loggers = [one for one in (given if isinstance(given, list) else [given]) if isinstance(one, Mapping)]
        for logger in sorted(loggers, key=has_folder, reverse=True):
            options = logger.get("init_args") or {}
            own_name = options.get("name") or (name if has_folder(logger) else None)
            if options.get("save_dir") and own_name:
                version = options.get("version") if has_folder(logger) else None
                return cls(Path(options["save_dir"], own_name), None if version is None else _name_of(version))
        return cls(Path(trainer.get("default_root_dir") or LOGS, name))

    @property
    def pattern(self) -> Path:
        """The folder as shown in messages."""
        return self.experiment / (self.version or "version_*")

    def found(self) -> list[Path]:
        """Return the existing folders, by decreasing version number."""
        if self.version is not None:
            return [self.experiment / self.version]
        numbers = [_number_of(path) for path in self.experiment.glob("version_*")]
        return [self.experiment / _name_of(number) for number in sorted(n for n in numbers if n is not None)[::-1]]

    def next(self) -> Path:
        """Return the folder of a new run."""
        if self.version is not None:
            return self.experiment / self.version
        newest = self.found()[:1]
        return self.experiment / _name_of(1 + (_number_of(newest[0]) or 0) if newest else 0)


def _name_of(version: int | str) -> str:
    return version if isinstance(version, str) else f"version_{version}"


def _number_of(folder: Path) -> int | None:
    found = re.fullmatch(r"version_(0|[1-9]\d{0,17})", folder.name)
    return int(found[1]) if found else None


def keep_rows(logger: CSVLogger, steps_done: int) -> None:
    """Keep the rows of metrics.csv before the step that a run resumes from; the logger would delete them."""
    path = Path(logger.log_dir, "metrics.csv")
    if not path.is_file():
        return
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["step"]) < steps_done]
    logger.experiment.metrics = [{name: value for name, value in row.items() if value != ""} for row in rows]
    logger.save()
