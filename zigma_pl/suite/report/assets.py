"""The folder `assets` of the page, with copies of all images, videos, configs and records that it shows.

The files of a report are in a numbered subfolder. A new report gets the next number, and the old subfolder is removed
after the page has been replaced. The page therefore always has its files, even if a report is interrupted.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock, Timeout
from PIL import Image, UnidentifiedImageError

from zigma_pl.core.errors import UserError

_MARK = ".written_by_zigma_pl_report"
_LOCK = ".lock"
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
_LARGE_BYTES = 64 * 1024
_WEBP_QUALITY = 90  # of 100; makes a grid of images six times smaller than as PNG
_WEBP_MAX_SIDE = 16383  # limit of the format


@contextmanager
def new_assets(folder: Path) -> Iterator["Assets"]:
    """Yield the assets of a new report. At the end of the block, remove those of earlier reports, or these on an error.

    Replace the page in the last step of the block.

    Args:
        folder: the folder `assets` beside the page.

    Raises:
        UserError: the folder holds other files, or another report is being written there.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARK).is_file():
        raise UserError(f"{folder} contains files that no report wrote: choose another path with --out")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).touch()
    try:
        lock = FileLock(folder / _LOCK, blocking=False).acquire()
    except Timeout as error:
        raise UserError(f"{folder}: another process is writing a report there: wait until it ends") from error
    with lock:
        numbers = [int(entry.name) for entry in folder.iterdir() if entry.name.isascii() and entry.name.isdecimal()]
        assets = Assets(folder / str(max(numbers, default=0) + 1))
        try:
            assets.folder.mkdir()
            yield assets
        except BaseException:
            shutil.rmtree(assets.folder, ignore_errors=True)
            raise
        for entry in folder.iterdir():
            if entry.name not in (_MARK, _LOCK, assets.folder.name):
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


class Assets:
    """Writes files to a folder two levels below the page, and returns their URLs relative to the page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def copy(self, source: Path, name: str) -> str:
        """Copy a file to `name` in the folder, or to a similar unused name; returns its URL."""
        target = self._free(name)
        shutil.copyfile(source, target)
        return self._address(target)

    def write(self, text: str, name: str) -> str:
        """Write a text to `name` in the folder, or to a similar unused name; returns its URL."""
        target = self._free(name)
        target.write_text(text, encoding="utf-8")
        return self._address(target)

    def copy_picture(self, source: Path, stem: str) -> tuple[str, tuple[int, int]] | None:
        """Copy an image; a large PNG is converted to WebP.

        Args:
            source: the image.
            stem: name in the folder, without suffix.

        Returns: URL and (width, height); None if the file is no image.
        """
        try:
            with Image.open(source, formats=_FORMATS) as opened:
                size = opened.size
                is_large = opened.format == "PNG" and source.stat().st_size >= _LARGE_BYTES
                picture = opened.convert("RGB") if is_large and max(size) <= _WEBP_MAX_SIDE else None
        except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
            return None
        if picture is None:
            return self.copy(source, stem + source.suffix), size
        target = self._free(f"{stem}.webp")
        picture.save(target, quality=_WEBP_QUALITY, method=6)
        return self._address(target), size

    def _free(self, name: str) -> Path:
        target = self.folder / name
        assert target.resolve().is_relative_to(self.folder.resolve())
        while target.exists():
            target = target.with_name(f"_{target.name}")
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _address(self, target: Path) -> str:
        return quote(target.relative_to(self.folder.parents[1]).as_posix())
