"""One writer to a folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from zigma_pl.errors import UserError

_LOCK = ".lock"


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Make the folder, and keep every other process from writing into it for as long as the block runs.

    The lock is the kernel's (POSIX record lock): it ends with the process, however that ends, so a lock file that a
    killed run left behind locks nothing. It is not inherited by the processes of data loaders.

    Raises:
        UserError: another process writes into the folder, or this one may not.
    """
    path = folder / _LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _lock(path)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"--out {folder}: cannot be written to ({error.strerror}); choose another folder") from error
    try:
        file.write(f"{os.getpid()}\n".encode())
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _lock(path: Path) -> IO[bytes]:
    while True:
        file = path.open("ab")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.close()
            raise UserError(
                f"{path.parent}: process {_last_line(path)} is preparing into this folder; wait until it has ended, "
                "or choose another --out"
            ) from None
        with suppress(FileNotFoundError):  # the one who had it may have removed the file just after we opened it
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.truncate(0)
                return file
        file.close()


def _last_line(path: Path) -> str:
    with suppress(OSError, IndexError):
        return path.read_text().splitlines()[-1]
    return "of another run"
