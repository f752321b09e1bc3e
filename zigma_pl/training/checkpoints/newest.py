"""Which files of a folder are checkpoints, and which whole one has the highest step; needs no torch."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from zigma_pl.core.files import UNFINISHED, sync_folder
from zigma_pl.training.checkpoints.archive import damage_of, read_step

CHECKPOINT_FOLDER = "checkpoints"  # of a log folder, as Lightning names it
LAST_LINK = "last.ckpt"  # points to the checkpoint that was written last


@dataclass(frozen=True)
class Newest:
    """What was found in a folder.

    path: the newest whole checkpoint, None if there is none.
    passed_over: a line for each newer one that is damaged.
    """

    path: Path | None
    passed_over: tuple[str, ...] = ()


def log_folder_of(checkpoint: Path) -> Path | None:
    """Return the log folder of the run that a checkpoint lies with, None for one that was put elsewhere."""
    return checkpoint.parent.parent if checkpoint.parent.name == CHECKPOINT_FOLDER else None


def newest_checkpoint(folder: Path) -> Newest:
    """Return the newest checkpoint of a folder that is whole; damaged ones that are newer are passed over, and told."""
    passed_over: list[str] = []
    for path in checkpoints_in(folder):
        reason = damage_of(path)
        if reason is None:
            return Newest(path, tuple(passed_over))
        passed_over.append(f"checkpoint {path} {reason}: the one saved before it is used")
    return Newest(None, tuple(passed_over))


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, whole or not, the highest step first."""
    # The step decides and not the clock, which may be wrong. Of two files of one step, the one written last is first.
    return sorted(files_in(folder), key=lambda path: (_step_of(path), path.stat().st_mtime_ns, path.name), reverse=True)


def files_in(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder in no order; links to them are left out."""
    found = [path for path in folder.glob("*.ckpt") if not path.name.startswith(UNFINISHED)]
    return [path for path in found if path.is_file() and not path.is_symlink()]


def _step_of(path: Path) -> int:
    """Return a checkpoint's step; of a damaged one, that in its name."""
    step = read_step(path)
    if step is None:
        step = max((int(digits) for digits in re.findall(r"\d{1,18}", path.stem)), default=-1)
    return step


def point_last_to(path: Path) -> None:
    """Have `last.ckpt` beside a checkpoint point to it; at no moment is there no such link."""
    link = path.with_name(LAST_LINK)
    unfinished = path.with_name(f"{UNFINISHED}{os.getpid()}-{LAST_LINK}")
    unfinished.unlink(missing_ok=True)
    unfinished.symlink_to(path.name)
    unfinished.replace(link)
    sync_folder(path.parent)


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed run has left half written."""
    for path in folder.glob(f"{UNFINISHED}*"):
        path.unlink(missing_ok=True)
