"""`--ckpt_path last`: find the newest checkpoint of an experiment from the options of the run."""

from dataclasses import dataclass
from pathlib import Path

from zigma_pl.core.errors import UserError
from zigma_pl.training.checkpoints.newest import CHECKPOINT_FOLDER, checkpoints_in, newest_checkpoint
from zigma_pl.training.checkpoints.run_folder import RunFolders


@dataclass(frozen=True)
class LastRun:
    """The newest run of an experiment.

    checkpoint: its newest intact checkpoint.
    passed_over: one message for each newer checkpoint that is damaged.
    folder: the run's folder, None if unknown.
    """

    checkpoint: Path
    passed_over: tuple[str, ...]
    folder: Path | None


def last_run(runs: RunFolders, dirpath: str | None) -> LastRun:
    """Find the newest run that has saved a checkpoint.

    Args:
        runs: folders of the experiment's runs.
        dirpath: value of checkpoint.dirpath, if set.

    Raises:
        UserError: there is no checkpoint, or all are damaged.
    """
    folders = [Path(dirpath)] if dirpath else [run / CHECKPOINT_FOLDER for run in runs.found()]
    folder = next((folder for folder in folders if checkpoints_in(folder)), None)
    if folder is None:
        raise UserError(
            f"--ckpt_path last: there is no checkpoint in {dirpath or runs.pattern / CHECKPOINT_FOLDER}: remove the "
            "option to train from scratch"
        )
    newest = newest_checkpoint(folder)
    if newest.path is None:
        raise UserError(
            f"--ckpt_path last: all checkpoints in {folder} are damaged, the newest is "
            f"{checkpoints_in(folder)[0].name}: remove the option to train from scratch"
        )
    run = next(iter(runs.found()), None) if dirpath else folder.parent
    return LastRun(newest.path, newest.passed_over, run)
