"""`--ckpt_path last`: the newest checkpoint of a row, found from the options of its run."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zigma_pl.checkpoints.newest import CHECKPOINT_FOLDER, Newest, checkpoints_in, newest_checkpoint
from zigma_pl.errors import UserError


@dataclass(frozen=True)
class LastRun:
    """The newest run of a row.

    checkpoint: its newest whole checkpoint.
    passed_over: a line for each newer one that is damaged.
    version: name of its log folder, None where it is not known.
    """

    checkpoint: Path
    passed_over: tuple[str, ...]
    version: str | None


def last_run(trainer: Mapping[str, Any], dirpath: str | None) -> LastRun:
    """Find the run that has saved last.

    Args:
        trainer: options of the trainer.
        dirpath: checkpoint.dirpath, if it is given.

    Raises:
        UserError: there is no checkpoint, or none that is whole, or the options do not say where to look.
    """
    logger = _options_of_logger(trainer.get("logger"))
    folders = [Path(dirpath)] if dirpath else _folders(trainer, logger)
    saved = [(files[0].stat().st_mtime_ns, folder) for folder in folders if (files := checkpoints_in(folder))]
    if not saved:
        raise UserError(
            f"--ckpt_path last: there is no checkpoint in {_shown(dirpath, trainer, logger)}: leave the option out to "
            "train from the start"
        )
    _, folder = max(saved)
    newest: Newest = newest_checkpoint(folder)
    if newest.path is None:
        raise UserError(
            f"--ckpt_path last: no checkpoint in {folder} is whole ({checkpoints_in(folder)[0].name} is the newest): "
            "leave the option out to train from the start"
        )
    version = folder.parent.name if dirpath is None and logger is not None else _newest_version(logger)
    return LastRun(newest.path, newest.passed_over, version)


def _options_of_logger(logger: Any) -> Mapping[str, Any] | None:
    """Return the options of the first logger that names folders, None without one."""
    loggers = logger if isinstance(logger, list) else [logger]
    options = [one["init_args"] for one in loggers if isinstance(one, Mapping) and "init_args" in one]
    return next((one for one in options if one.get("save_dir") and one.get("name")), None)


def _folders(trainer: Mapping[str, Any], logger: Mapping[str, Any] | None) -> list[Path]:
    if logger is not None:
        row = Path(logger["save_dir"], logger["name"])
        version = logger.get("version")
        names = [path.name for path in row.glob("version_*")] if version is None else [_name_of(version)]
        return [row / name / CHECKPOINT_FOLDER for name in names]
    if trainer.get("logger") in (False, []):
        return [Path(trainer.get("default_root_dir") or ".") / CHECKPOINT_FOLDER]
    raise UserError("--ckpt_path last: this logger does not say where checkpoints are; set checkpoint.dirpath")


def _name_of(version: int | str) -> str:
    return version if isinstance(version, str) else f"version_{version}"


def _newest_version(logger: Mapping[str, Any] | None) -> str | None:
    """Return the log folder to go on in where checkpoints are elsewhere: the one with the highest number."""
    if logger is None:
        return None
    if logger.get("version") is not None:
        return _name_of(logger["version"])
    found = [path.name for path in Path(logger["save_dir"], logger["name"]).glob("version_*")]
    numbers = [int(name[1]) for name in (re.fullmatch(r"version_(\d+)", name) for name in found) if name]
    return f"version_{max(numbers)}" if numbers else None


def _shown(dirpath: str | None, trainer: Mapping[str, Any], logger: Mapping[str, Any] | None) -> str:
    if dirpath or logger is None:
        return dirpath or str(_folders(trainer, logger)[0])
    version = "version_*" if logger.get("version") is None else _name_of(logger["version"])
    return str(Path(logger["save_dir"], logger["name"], version, CHECKPOINT_FOLDER))
