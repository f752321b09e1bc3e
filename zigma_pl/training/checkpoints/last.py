"""`--ckpt_path last`: the newest checkpoint of an experiment, found from the options of its run."""

from dataclasses import dataclass
from pathlib import Path

from zigma_pl.core.errors import UserError
from zigma_pl.training.checkpoints.newest import CHECKPOINT_FOLDER, checkpoints_in, newest_checkpoint
from zigma_pl.training.checkpoints.run_folder import RunFolders


@dataclass(frozen=True)
class LastRun:
    """The newest run of an experiment.

    checkpoint: its newest whole checkpoint.
    passed_over: a line for each newer one that is damaged.
    folder: the run's folder, None where it is not known.
    """

    checkpoint: Path
    passed_over: tuple[str, ...]
    folder: Path | None


def last_run(runs: RunFolders, dirpath: str | None) -> LastRun:
    """Find the newest run that has saved a checkpoint.

    Args:
        runs: where the runs of the experiment are.
        dirpath: checkpoint.dirpath, if it is given.

    Raises:
        UserError: there is no checkpoint, or none that is whole.
    """
    folders = [Path(dirpath)] if dirpath else [run / CHECKPOINT_FOLDER for run in runs.found()]
    folder = next((folder for folder in folders if checkpoints_in(folder)), None)
    if folder is None:
        raise UserError(
            f"--ckpt_path last: there is no checkpoint in {dirpath or runs.pattern / CHECKPOINT_FOLDER}: leave the "
            "option out to train from the start"
        )
    newest = newest_checkpoint(folder)
    if newest.path is None:
        raise UserError(
            f"--ckpt_path last: no checkpoint in {folder} is whole ({checkpoints_in(folder)[0].name} is the newest): "
            "leave the option out to train from the start"
        )
    run = next(iter(runs.found()), None) if dirpath else folder.parent
    return LastRun(newest.path, newest.passed_over, run)
