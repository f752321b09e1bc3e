"""Which files of a folder are checkpoints, whether they are whole, and which is the newest; needs no torch."""

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

from zigma_pl.files import UNFINISHED, sync_folder

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
    """Return the checkpoints of a folder, whole or not, the one written last first; links to them are left out."""
    found = [path for path in folder.glob("*.ckpt") if not path.name.startswith(UNFINISHED)]
    files = [path for path in found if path.is_file() and not path.is_symlink()]
    # Of two in the same tick of the file system's clock, names that count steps say which is newer.
    return sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)


def damage_of(path: Path) -> str | None:
    """Return what is wrong with a checkpoint's file, as in "<file> is truncated"; None if it is whole.

    All of it is read and compared with the checksums in the archive, 0.3 s a GB where the file is in memory: torch
    itself does not look at them.
    """
    try:
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                return "is no checkpoint of zigma_pl, or truncated"
        with zipfile.ZipFile(path) as archive:  # its index is at the end, so what is truncated has none
            altered = archive.testzip()
    except zipfile.BadZipFile:
        return "is truncated"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (RuntimeError, EOFError, ValueError):  # of an index that says what no index of a checkpoint says
        return "is altered"
    return None if altered is None else f"is altered (in {altered})"


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
