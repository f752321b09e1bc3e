"""The folder `assets` beside the page, with copies of all images, videos, configs and records that it shows.

The name of a file contains a hash of its content, so a new report does not overwrite what the earlier page shows. Files
that the new page does not use are removed after the page has been replaced. The page therefore always has its files,
even if a report is interrupted.

Images and curves of a record are in `runs/<scale>/<name>-<hash of the record>/`. If the record's own images or logs are
missing, as in a fresh clone, they are taken from an earlier report of the same record.
"""

import hashlib
import io
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from filelock import FileLock, Timeout
from PIL import Image, UnidentifiedImageError

from zigma_pl.core.errors import UserError
from zigma_pl.core.files import UNFINISHED, read_regular

_MARK = ".written_by_zigma_pl_report"
_LOCK = ".lock"
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
_LARGE_BYTES = 64 * 1024
_WEBP_QUALITY = 90  # of 100; makes a grid of images six times smaller than as PNG
_WEBP_MAX_SIDE = 16383  # limit of the format
_HASH_DIGITS = 10

Size = tuple[int, int]  # width and height in pixels


@contextmanager
def new_assets(folder: Path, earlier: Sequence[Path] = ()) -> Iterator["Assets"]:
    """Yield the assets of a new report. At the end of the block, remove unused files, or the new ones on an error.

    Replace the page in the last step of the block.

    Args:
        folder: the folder `assets` beside the page.
        earlier: the same folder of other reports, for images and curves that are missing.

    Raises:
        UserError: the folder contains other files, or another process is writing a report there.
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
        before = set(_files(folder))
        assets = Assets(folder, earlier)
        try:
            yield assets
        except BaseException:
            _remove(folder, set(_files(folder)) - before)
            raise
        _remove(folder, set(_files(folder)) - assets.used)


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names if name not in (_MARK, _LOCK))


def _remove(folder: Path, files: set[Path]) -> None:
    for file in files:
        file.unlink()
    for parent, _, _ in os.walk(folder, topdown=False):
        if not any(Path(parent).iterdir()):
            shutil.rmtree(parent)


class Assets:
    """Writes files below a folder, and returns their URLs relative to the page.

    Attributes:
        used: the files that the new page shows.
    """

    def __init__(self, folder: Path, earlier: Sequence[Path] = ()) -> None:
        self.folder = folder
        self.used: set[Path] = set()
        self._earlier = (folder, *earlier)

    def add(self, content: bytes, name: str) -> str:
        """Write a file called `name` with a hash before the suffix; returns its URL."""
        path = PurePosixPath(name)
        return self.put(content, str(path.with_name(f"{path.stem}-{_digest(content)}{path.suffix}")))

    def put(self, content: bytes, name: str) -> str:
        """Write a file called `name`, unless it exists with this content; returns its URL."""
        target = self.folder / name
        assert target.resolve().is_relative_to(self.folder.resolve())
        if not target.is_file() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished = target.with_name(f"{UNFINISHED}{target.name}")
            unfinished.write_bytes(content)  # not flushed to disk, which takes long for hundreds of files
            unfinished.replace(target)
        self.used.add(target)
        return quote(f"{self.folder.name}/{name}")

    def add_image(self, source: Path, stem: str) -> tuple[str, Size] | None:
        """Copy an image, a large PNG as WebP; returns its URL and size, or None if the file is no image."""
        encoded = encoded_image(source)
        return None if encoded is None else (self.add(encoded[0], stem + encoded[1]), encoded[2])

    def earlier(self, pattern: str) -> list[Path]:
        """Return the files of an earlier report by a pattern of their names; empty if no report has such files."""
        parent, _, name = pattern.rpartition("/")
        found = ([path for path in sorted((folder / parent).glob(name)) if path.is_file()] for folder in self._earlier)
        return next(filter(None, found), [])


class RunAssets:
    """The files of one record.

    Args:
        assets: where they are written.
        record: the record's file.
        scale: scale of the record.
    """

    def __init__(self, assets: Assets, record: Path, scale: str) -> None:
        self._assets = assets
        self._content = read_regular(record)
        self._folder = f"runs/{scale}/{record.stem}-{_digest(self._content)}"

    def record(self) -> str:
        """Copy the record; returns its URL."""
        return self._assets.put(self._content, f"{self._folder}/record.json")

    def image(self, source: Path | None, stem: str) -> tuple[str, Size] | None:
        """Copy an image, by default that of an earlier report.

        Args:
            source: the image; None if it is missing.
            stem: name of the copy without suffix.

        Returns: URL and size; None if there is no image.
        """
        file = self.earlier(f"{stem}.*") if source is None else source
        encoded = None if file is None else encoded_image(file)
        if encoded is None:
            return None
        content, suffix, size = encoded
        return self.write(content, stem + suffix), size

    def file(self, source: Path | None, stem: str) -> str | None:
        """Copy a file, by default that of an earlier report; returns its URL, or None if there is none."""
        file = self.earlier(f"{stem}.*") if source is None else source
        return None if file is None else self.write(read_regular(file), stem + file.suffix)

    def write(self, content: bytes, name: str) -> str:
        """Write a file; returns its URL."""
        return self._assets.put(content, f"{self._folder}/{name}")

    def earlier(self, pattern: str) -> Path | None:
        """Return a file of this record in an earlier report, by a pattern of its name."""
        return next(iter(self.all_earlier(pattern)), None)

    def all_earlier(self, pattern: str) -> list[Path]:
        """Return the files of this record in an earlier report, by a pattern of their names."""
        return self._assets.earlier(f"{self._folder}/{pattern}")


def encoded_image(source: Path) -> tuple[bytes, str, Size] | None:
    """Return the content, suffix and size of an image, a large PNG as WebP; None if the file is no image."""
    try:
        content = read_regular(source)
        with Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
            size = opened.size
            is_large = opened.format == "PNG" and len(content) >= _LARGE_BYTES and max(size) <= _WEBP_MAX_SIDE
            image = opened.convert("RGB") if is_large else None
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        return None
    if image is None:
        return content, source.suffix, size
    as_webp = io.BytesIO()
    image.save(as_webp, "WEBP", quality=_WEBP_QUALITY, method=6)
    return as_webp.getvalue(), ".webp", size


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_HASH_DIGITS]
