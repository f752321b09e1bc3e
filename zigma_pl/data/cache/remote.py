"""Prepared data sets at URLs: downloaded once into a local folder, with every file checked against its hash."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, get_args

import fsspec
from filelock import FileLock
from tqdm import tqdm

from zigma_pl.core.errors import UserError
from zigma_pl.core.files import UNFINISHED, cache_folder, written_whole
from zigma_pl.core.records import MAX_BYTES, parse_record
from zigma_pl.data.cache.manifest import MANIFEST_NAME, File, Manifest
from zigma_pl.data.samples import Split

# Protocols that only read files. Some others of fsspec run commands, open archives or chain further URLs.
PROTOCOLS = ("https", "http", "s3", "gs", "az", "abfs", "hf", "sftp", "ftp", "file", "memory")
DEFAULT_FOLDER = cache_folder() / "prepared"
CHUNK_BYTES = 2**20


def is_address(location: str) -> bool:
    """Return whether a location is a URL such as "https://host/folder", and not a local folder."""
    return "://" in location or location.startswith("pipe:")


def fetch_manifest(address: str) -> Manifest:
    """Return the manifest of the prepared data set at a URL.

    Raises:
        UserError: the protocol is not one of `PROTOCOLS`, or the manifest is missing or invalid.
    """
    return parse_record(Manifest, _manifest_bytes(address), f"{address.rstrip('/')}/{MANIFEST_NAME}")


def copy_once(address: str, below: Path) -> Path:
    """Download a prepared data set into its own folder, unless it has been downloaded before; returns the folder.

    The folder is named by the hash of the manifest, so another data set at the same URL gets another folder. Files are
    written atomically, the manifest last; an interrupted download is resumed. Other processes that need the same data
    set wait for the one that downloads it.

    Args:
        address: URL of the prepared folder, see `PROTOCOLS`.
        below: parent folder of all downloads.

    Raises:
        UserError: a file cannot be read or does not match its hash, or the disk is full.
    """
    content = _manifest_bytes(address)
    manifest = parse_record(Manifest, content, f"{address.rstrip('/')}/{MANIFEST_NAME}")
    folder = below / hashlib.sha256(content).hexdigest()[:32]
    try:
        for split in get_args(Split):
            (folder / split).mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if not (folder / MANIFEST_NAME).is_file():
                _copy_files(address, manifest, folder)
                with written_whole(folder / MANIFEST_NAME) as file:
                    file.write(content)
    except OSError as error:
        raise UserError(
            f"data.keep_fetched_in: cannot write to {folder} ({error.strerror}): choose another folder"
        ) from error
    return folder


def _copy_files(address: str, manifest: Manifest, folder: Path) -> None:
    for leftover in folder.glob(f"*/{UNFINISHED}*"):
        leftover.unlink()
    files = [(f"{split}/{name}", file) for split, shard in manifest.shards for name, file in shard.files.items()]
    missing = [(name, file) for name, file in files if not _has(folder / name, file)]
    num_bytes, free = sum(file.num_bytes for _, file in missing), shutil.disk_usage(folder).free
    if num_bytes > free:
        raise UserError(
            f"data.keep_fetched_in: downloading {address} needs another {num_bytes / 1e9:,.2f} GB, but {folder} has "
            f"{free / 1e9:,.2f} GB free: choose a folder on a larger disk"
        )
    with tqdm(total=num_bytes, unit="B", unit_scale=True, desc=f"downloading {address}") as bar:
        for name, file in missing:
            _copy(address, name, file, folder, bar)


def _has(path: Path, file: File) -> bool:
    return path.is_file() and path.stat().st_size == file.num_bytes


def _copy(address: str, name: str, file: File, folder: Path, bar: Any) -> None:
    digest, num_bytes = hashlib.sha256(), 0
    with _opened(address, name) as source, written_whole(folder / name) as target:
        while chunk := _read(source, address, name):
            num_bytes += len(chunk)
            digest.update(chunk)
            if num_bytes > file.num_bytes:
                break
            target.write(chunk)
            bar.update(len(chunk))
        if num_bytes != file.num_bytes or digest.hexdigest() != file.sha256:
            raise UserError(
                f"{address.rstrip('/')}/{name} does not match the manifest: upload the whole prepared folder again"
            )


def _manifest_bytes(address: str) -> bytes:
    with _opened(address, MANIFEST_NAME) as file:
        return _read(file, address, MANIFEST_NAME, MAX_BYTES + 1)


@contextmanager
def _opened(address: str, name: str) -> Iterator[IO[bytes]]:
    protocol = address.partition("://")[0]
    if protocol not in PROTOCOLS or "::" in address:
        raise UserError(
            f"data.cache {address} is not a supported URL: use a folder, or a URL that starts with "
            f"{'://, '.join(PROTOCOLS)}://"
        )
    with _one_line(address, name):
        filesystem, root = fsspec.url_to_fs(address)
        file = filesystem.open(f"{root.rstrip('/')}/{name}", "rb")
    with file:
        yield file


def _read(file: IO[bytes], address: str, name: str, num_bytes: int = CHUNK_BYTES) -> bytes:
    with _one_line(address, name):
        return file.read(num_bytes)


@contextmanager
def _one_line(address: str, name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each file system of fsspec raises its own errors
        raise UserError(
            f"data.cache: cannot read {address.rstrip('/')}/{name} ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}): check the URL and the network, and install fsspec's package for "
            "this protocol"
        ) from error
