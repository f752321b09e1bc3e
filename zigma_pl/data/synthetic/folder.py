"""Writing a folder of data atomically."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from zigma_pl.core.errors import UserError
from zigma_pl.core.records import Record, read_record, write_record

_RECORD = ".synthetic.json"


class _Contents(Record):
    """Number of files in the folder."""

    remedy: ClassVar[str] = "remove that folder to create it again"

    num_files: int


def write_once(folder: Path, write_files: Callable[[Path], None], what: str) -> None:
    """Create `folder` with `write_files` unless it exists.

    The files are written to a temporary folder that is renamed when complete, so `folder` is never incomplete. If
    several processes create it at once, the first to finish wins.

    Raises:
        UserError: the folder exists, but files are missing from it.
    """
    if not folder.exists():
        rank_zero_info(f"Creating {what} in {folder}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
        try:
            write_files(unfinished)
            write_record(_Contents(num_files=_num_files(unfinished)), unfinished / _RECORD)
            unfinished.chmod(0o755)
            _rename_unless_there(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    record = folder / _RECORD
    if not record.is_file() or read_record(_Contents, record).num_files != _num_files(folder):
        raise UserError(f"files are missing from {folder}: remove that folder to create it again")


def _num_files(folder: Path) -> int:
    return sum(path.is_file() and path.name != _RECORD for path in folder.rglob("*"))


def _rename_unless_there(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        if not target.is_dir():  # otherwise another process has finished first, with the same content
            raise
