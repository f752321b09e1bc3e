"""Prepared sets on an object store: what `webdataset.gopen` opens, fetched whole, checked, and kept if so wished."""

import fcntl
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zigma_pl.data.prepared.manifest import File
from zigma_pl.errors import UserError
from zigma_pl.files import written_whole

_HARMLESS_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{64}")


def is_remote(location: str) -> bool:
    """Return whether a location is an address such as "https://..." or "pipe:command", and not a folder."""
    return location.startswith("pipe:") or "://" in location


def address_of(location: str, name: str) -> str:
    """Return the address of a file: `name` in place of "{}" in the location, or after it where there is none."""
    return location.replace("{}", name) if "{}" in location else f"{location.rstrip('/')}/{name}"


def fetch(location: str, name: str) -> bytes:
    """Return the content of a file.

    Args:
        location: an address that `webdataset.gopen` opens, such as "https://host/folder", "gs://bucket/folder" (by
            the command gsutil), or "pipe:aws s3 cp s3://bucket/folder/{} -"; the command is run by the shell.
        name: path of the file below it.

    Raises:
        UserError: webdataset is not installed, or the file cannot be fetched.
    """
    address = address_of(location, name)
    if not _HARMLESS_NAME.fullmatch(name):  # it comes from a manifest, and goes to a shell
        raise UserError(
            f"{location}: the file name {name!r} is refused; get the manifest again, from a source that you trust"
        )
    try:
        with _gopen()(address, "rb") as stream:
            return stream.read()
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot fetch {address} ({' '.join(str(error).split())[:200]}): check the address in data.cache, the "
            "network, and that the command it needs (curl for https) is installed"
        ) from error


def fetch_checked(location: str, name: str, expected: File, keep_in: Path | None) -> bytes | Path:
    """Return a file's content, or where it is kept, having compared its hash.

    Args:
        location, name: see `fetch`.
        expected: size and hash from the manifest.
        keep_in: folder to keep files in, or None. They are named by their hash there, so sets may share it, and a file
            of an older set is never taken for one of a newer. Processes that want the same file wait for one another.

    Raises:
        UserError: it cannot be fetched, or has another hash than the manifest says.
    """
    if not _HASH.fullmatch(expected.sha256):  # it becomes a file name
        raise UserError(f"{location}: the manifest gives no SHA-256 of {name}; prepare the set again")
    if keep_in is None:
        return _fetch_same(location, name, expected)
    path = keep_in / f"{expected.sha256}{Path(name).suffix}"
    if not path.is_file():
        keep_in.mkdir(parents=True, exist_ok=True)
        with _lock(keep_in / f"{expected.sha256}.lock"):
            if not path.is_file():
                content = _fetch_same(location, name, expected)
                with written_whole(path) as file:
                    file.write(content)
    return path


def _fetch_same(location: str, name: str, expected: File) -> bytes:
    content = fetch(location, name)
    if hashlib.sha256(content).hexdigest() != expected.sha256:
        raise UserError(
            f"{address_of(location, name)} is not the file that the manifest names ({len(content)} bytes, expected "
            f"{expected.num_bytes}): upload the prepared folder again, as a whole"
        )
    return content


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Wait for other processes; the lock ends with the process, however that ends."""
    with path.open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _gopen() -> Any:
    try:
        from webdataset import gopen
    except ImportError as error:
        raise UserError(
            'reading shards from an address needs webdataset: pip install "zigma_pl[webdataset]", or copy them to a '
            "local folder and give that as data.cache"
        ) from error
    return gopen
