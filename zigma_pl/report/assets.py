"""The folder of files beside the page: pictures, videos, rows and records are copied there, so that it stands alone."""

import shutil
from pathlib import Path
from urllib.parse import quote

from PIL import Image, UnidentifiedImageError

from zigma_pl.errors import UserError

_MARK = ".written_by_zigma_pl_report"


class Assets:
    """Copies files into a folder, and gives their addresses from the page beside it.

    Args:
        folder: emptied first, if an earlier report wrote it.

    Raises:
        UserError: the folder holds something else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if folder.exists():
            if any(folder.iterdir()) and not (folder / _MARK).is_file():
                raise UserError(f"{folder} holds other files than those of a report: choose another place with --out")
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        (folder / _MARK).touch()

    def copy(self, source: Path, name: str) -> str:
        """Copy a file to `name` in the folder, or a name like it that is free yet; returns its address."""
        target = self.folder / name
        while target.exists():
            target = target.with_name(f"_{target.name}")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        return quote(target.relative_to(self.folder.parent).as_posix())


def picture_size(path: Path) -> tuple[int, int] | None:
    """Return width and height, None for what is no picture."""
    try:
        with Image.open(path) as picture:
            return picture.size
    except (OSError, UnidentifiedImageError):
        return None
