"""Writing a stand-in's folder whole or not at all."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from zigma_pl.core.errors import UserError
from zigma_pl.core.records import Record, read_record, write_record

_RECORD = ".standin.json"


class _Contents(Record):
    """How many files belong to the folder."""

    remedy: ClassVar[str] = "remove that folder, and it will be drawn again"

    num_files: int


def write_once(folder: Path, write_files: Callable[[Path], None], what: str) -> None:
    """Fill `folder` by `write_files` unless it is there already.

    It is written under a temporary name beside it and renamed when complete, so a folder of that name is never half
    full, and of several processes the first one to finish wins.

    Raises:
        UserError: the folder is there and has lost files.
    """
    if not folder.exists():
        rank_zero_info(f"Drawing {what} in {folder}")
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
        raise UserError(f"the stand-in in {folder} has lost files: remove that folder, and it will be drawn again")


def _num_files(folder: Path) -> int:
    return sum(path.is_file() and path.name != _RECORD for path in folder.rglob("*"))


def _rename_unless_there(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was quicker, and its folder is equal
            raise
