"""Files that appear whole or not at all, and their hashes."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

UNFINISHED = ".unfinished-"  # what a killed run leaves begins with this, and the next run removes it


def cache_folder() -> Path:
    """Return zigma_pl in the user's cache folder (XDG base directories)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zigma_pl"


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that appears at `path`, safely on disk, when the block ends; after an error it does not.

    The name in between is the process's own.
    """
    unfinished = path.with_name(f"{UNFINISHED}{os.getpid()}-{path.name}")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove_leftovers(path: Path) -> None:
    """Remove what processes that were killed on this machine have left of `path`, but not what is being written."""
    for leftover in path.parent.glob(f"{UNFINISHED}*"):
        process, _, name = leftover.name.removeprefix(UNFINISHED).partition("-")
        if name == path.name and process.isascii() and process.isdecimal() and not _is_running(int(process)):
            leftover.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file for reading.

    Raises:
        OSError: it cannot be opened, or is something else, such as a FIFO, on which reading could wait for ever.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # so that opening does not wait either
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path) -> bytes:
    """Return the content of a regular file; raises as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def sync_folder(folder: Path) -> None:
    """Have the folder's own entries safely on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to, and rename it at the end: a reader of `path` never sees half of the file.

    For what a library writes to a path, and what may be lost when the machine stops; else there is `written_whole`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
