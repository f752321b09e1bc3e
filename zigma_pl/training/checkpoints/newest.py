"""Find the checkpoints in a folder, and the intact one with the highest step. Does not import torch."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from zigma_pl.core.files import UNFINISHED, sync_folder
from zigma_pl.training.checkpoints.archive import damage_of, read_step

CHECKPOINT_FOLDER = "checkpoints"  # subfolder of a log folder, named by Lightning
LAST_LINK = "last.ckpt"  # symbolic link to the last checkpoint


@dataclass(frozen=True)
class Newest:
    """The newest checkpoint of a folder.

    path: the newest intact checkpoint, None if there is none.
    passed_over: one message for each newer checkpoint that is damaged.
    """

    path: Path | None
    passed_over: tuple[str, ...] = ()


def log_folder_of(checkpoint: Path) -> Path | None:
    """Return the log folder that a checkpoint belongs to, None if it is stored elsewhere."""
    return checkpoint.parent.parent if checkpoint.parent.name == CHECKPOINT_FOLDER else None


def newest_checkpoint(folder: Path) -> Newest:
    """Return the newest intact checkpoint of a folder, and messages about newer damaged ones."""
    passed_over: list[str] = []
    for path in checkpoints_in(folder):
        reason = damage_of(path)
        if reason is None:
            return Newest(path, tuple(passed_over))
        passed_over.append(f"checkpoint {path} {reason}: using the previous checkpoint")
    return Newest(None, tuple(passed_over))


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, intact or not, by decreasing step."""
    # Sorted by step, as file times may be wrong. Of two files of the same step, the one written last comes first.
    return sorted(files_in(folder), key=lambda path: (_step_of(path), path.stat().st_mtime_ns, path.name), reverse=True)


def files_in(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder in arbitrary order, without links."""
    found = [path for path in folder.glob("*.ckpt") if not path.name.startswith(UNFINISHED)]
    return [path for path in found if path.is_file() and not path.is_symlink()]


def _step_of(path: Path) -> int:
    """Return a checkpoint's step; for a damaged file, the step in its name."""
    step = read_step(path)
    if step is None:
        step = max((int(digits) for digits in re.findall(r"\d{1,18}", path.stem)), default=-1)
    return step


def point_last_to(path: Path) -> None:
    """Atomically link `last.ckpt`, in the same folder, to a checkpoint."""
    link = path.with_name(LAST_LINK)
    unfinished = path.with_name(f"{UNFINISHED}{os.getpid()}-{LAST_LINK}")
    unfinished.unlink(missing_ok=True)
    unfinished.symlink_to(path.name)
    unfinished.replace(link)
    sync_folder(path.parent)


def remove_unfinished(folder: Path) -> None:
    """Remove incomplete files of a killed run."""
    for path in folder.glob(f"{UNFINISHED}*"):
        path.unlink(missing_ok=True)
