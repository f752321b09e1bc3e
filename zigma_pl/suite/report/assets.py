"""The files beside the page: pictures, videos, experiments and records are copied there, so that it stands alone.

The folder `assets` holds a folder for the page's files, named by a number. A new report gets the next number, and the
old one is removed after the page itself has been replaced: so a page always finds its files, whenever a report ends.
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
_WEBP_QUALITY = 90  # of 100; a grid of pictures then takes a sixth of its PNG
_WEBP_MAX_SIDE = 16383  # of the format


@contextmanager
def new_assets(folder: Path) -> Iterator["Assets"]:
    """Give the assets of a new report, and at the end remove those of earlier ones; after an error, the new ones.

    The page has to be replaced inside of the block, as its last step.

    Args:
        folder: the folder `assets` beside the page.

    Raises:
        UserError: the folder holds other files, or another report is being written there.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARK).is_file():
        raise UserError(f"{folder} holds other files than those of a report: choose another place with --out")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).touch()
    try:
        lock = FileLock(folder / _LOCK, blocking=False).acquire()
    except Timeout as error:
        raise UserError(f"{folder}: another report is being written there: wait for it") from error
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
    """Puts files into a folder two levels below the page, and gives their addresses from there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def copy(self, source: Path, name: str) -> str:
        """Copy a file to `name` in the folder, or a similar name that is not taken; returns its address."""
        target = self._free(name)
        shutil.copyfile(source, target)
        return self._address(target)

    def write(self, text: str, name: str) -> str:
        """Write a text to `name` in the folder, or a similar name that is not taken; returns its address."""
        target = self._free(name)
        target.write_text(text, encoding="utf-8")
        return self._address(target)

    def copy_picture(self, source: Path, stem: str) -> tuple[str, tuple[int, int]] | None:
        """Copy a still picture, a large PNG as WebP.

        Args:
            source: the picture.
            stem: its name in the folder without the suffix.

        Returns: its address, and its width and height; None for what is no picture.
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
