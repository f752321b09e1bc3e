"""The folder of files beside the page: pictures, videos, rows and records are copied there, so that it stands alone."""

import shutil
from pathlib import Path
from urllib.parse import quote

from PIL import Image, UnidentifiedImageError

from zigma_pl.errors import UserError

_MARK = ".written_by_zigma_pl_report"
_LARGE_BYTES = 64 * 1024
_WEBP_QUALITY = 90  # of 100; a grid of pictures then takes a sixth of its PNG


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
        target = self._free(name)
        shutil.copyfile(source, target)
        return self._address(target)

    def copy_picture(self, source: Path, stem: str) -> tuple[str, tuple[int, int]] | None:
        """Copy a still picture, a large PNG as WebP.

        Args:
            source: the picture.
            stem: its name in the folder without the suffix.

        Returns: its address, and its width and height; None for what is no picture.
        """
        try:
            with Image.open(source) as opened:
                is_large = opened.format == "PNG" and source.stat().st_size >= _LARGE_BYTES
                size, picture = opened.size, opened.convert("RGB") if is_large else None
        except (OSError, UnidentifiedImageError):
            return None
        if picture is None:
            return self.copy(source, stem + source.suffix), size
        target = self._free(f"{stem}.webp")
        picture.save(target, quality=_WEBP_QUALITY, method=6)
        return self._address(target), size

    def _free(self, name: str) -> Path:
        target = self.folder / name
        while target.exists():
            target = target.with_name(f"_{target.name}")
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _address(self, target: Path) -> str:
        return quote(target.relative_to(self.folder.parent).as_posix())
