"""Tar shards in the layout of WebDataset, read in place: nothing of them is ever extracted or executed.

Members that lie side by side and share their name up to the first dot of its last part are one sample; the rest of the
name is the field, such as "image.jpg" (github.com/webdataset/webdataset, "The WebDataset Format").
"""

import io
import json
import mmap
import tarfile
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zigma_pl.errors import UserError

_END = bytes(tarfile.BLOCKSIZE)  # a tar file ends with empty blocks


class ShardIndex(NamedTuple):
    """Where everything is in a shard.

    keys: name of each sample, without the field.
    offsets: for each field its place in the file, (num_samples,) int64, -1 where a sample has no such field.
    sizes: for each field its length in bytes, (num_samples,) int64.
    """

    keys: list[str]
    offsets: dict[str, np.ndarray]
    sizes: dict[str, np.ndarray]


class TarShard:
    """One shard, open for reading.

    Args:
        name: path or address, for messages.
        content: the whole file, mapped or in memory.
        index: as `index_shard` made it; made here when it is not given.

    Raises:
        UserError: see `index_shard`.
    """

    def __init__(self, name: str, content: mmap.mmap | bytes, index: ShardIndex | None = None) -> None:
        self.name = name
        self.content = content
        self.index = index or index_shard(name, content)
        self._headers: dict[bytes, tuple[np.dtype[Any], tuple[int, ...], bool]] = {}

    def __len__(self) -> int:
        return len(self.index.keys)

    @property
    def fields(self) -> list[str]:
        """Fields that any sample has."""
        return list(self.index.offsets)

    def has(self, sample: int, field: str) -> bool:
        """Return whether a sample has a field."""
        return field in self.index.offsets and bool(self.index.offsets[field][sample] >= 0)

    def read(self, sample: int, field: str) -> bytes:
        """Return a field's bytes.

        Raises:
            UserError: the sample has no such field.
        """
        start, size = self._place(sample, field)
        return self.content[start : start + size]

    def array(self, sample: int, field: str) -> np.ndarray:
        """Return the array in a field "<...>.npy", a read-only view of the shard.

        Raises:
            UserError: there is no such field, or it is no array, is cut short or holds Python objects.
        """
        start, size = self._place(sample, field)
        header_end = start + 10 + int.from_bytes(self.content[start + 8 : start + 10], "little")
        header = self.content[start:header_end]
        if header not in self._headers:
            self._headers[header] = self._parse(header, sample, field)
        dtype, shape, fortran_order = self._headers[header]
        if header_end - start + prod(shape) * dtype.itemsize != size:
            raise self._fault(sample, field, f"has not the {prod(shape)} numbers that it announces")
        return np.ndarray(shape, dtype, self.content, header_end, order="F" if fortran_order else "C")

    def json(self, sample: int, field: str) -> Any:
        """Return what a JSON field holds.

        Raises:
            UserError: there is no such field, or it is no JSON.
        """
        try:
            return json.loads(self.read(sample, field))
        except ValueError as error:
            raise self._fault(sample, field, f"is no JSON ({error})") from error

    def integer(self, sample: int, field: str) -> int:
        """Return the number in a field such as "cls", which holds its digits.

        Raises:
            UserError: there is no such field, or it is no number.
        """
        try:
            return int(self.read(sample, field))
        except ValueError as error:
            raise self._fault(sample, field, "is no whole number") from error

    def _place(self, sample: int, field: str) -> tuple[int, int]:
        if not self.has(sample, field):
            raise UserError(
                f"shard {self.name}: sample '{self.index.keys[sample]}' has no field '{field}', it has "
                f"{', '.join(name for name in self.fields if self.has(sample, name))}"
            )
        return int(self.index.offsets[field][sample]), int(self.index.sizes[field][sample])

    def _parse(self, header: bytes, sample: int, field: str) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
        stream = io.BytesIO(header)
        try:
            version = np.lib.format.read_magic(stream)
            if version != (1, 0):
                raise ValueError(f"npy version {version}")
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
        except Exception as error:  # a damaged header can raise nearly anything
            raise self._fault(sample, field, f"is no array ({' '.join(str(error).split())[:80]})") from error
        if dtype.hasobject:
            raise self._fault(sample, field, "holds pickled Python objects, which were not loaded")
        return dtype, shape, fortran_order

    def _fault(self, sample: int, field: str, what: str) -> UserError:
        return UserError(
            f"shard {self.name}: '{self.index.keys[sample]}.{field}' {what}; fetch or write the shard again"
        )


def open_shard(path: Path, index: ShardIndex | None = None) -> TarShard:
    """Map a shard on disk into memory.

    Raises:
        UserError: it is not there, or see `index_shard`.
    """
    try:
        with path.open("rb") as file:
            content: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:  # an empty file cannot be mapped
        content = b""
    except OSError as error:
        raise UserError(f"cannot read the shard {path} ({error.strerror}): restore it") from error
    return TarShard(str(path), content, index)


def index_shard(name: str, content: mmap.mmap | bytes) -> ShardIndex:
    """Return where the samples of a shard are, from its headers alone.

    Raises:
        UserError: it is no whole tar file, or holds a member that could do harm to one who extracts it, or a field
            twice.
    """
    try:
        members = _plain_members(content) or _members(name, content)
    except (tarfile.TarError, EOFError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"shard {name} is cut short or no tar file ({error}): fetch or write it again; compressed ones have to be "
            "unpacked"
        ) from error
    keys: list[str] = []
    places: list[dict[str, tuple[int, int]]] = []
    for path, start, size in members:
        if path.startswith("/") or "\\" in path or ".." in path.split("/"):
            raise _harmful(name, path, "has a path that leads out of its folder")
        key, field = _split_name(path)
        if field and (not keys or keys[-1] != key):
            keys.append(key)
            places.append({})
        if field and field in places[-1]:
            raise UserError(f"shard {name}: '{path}' is in it twice; write the shard again")
        if field:
            places[-1][field] = (start, size)
    return ShardIndex(keys, *_as_arrays(places))


def _as_arrays(places: list[dict[str, tuple[int, int]]]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    fields = dict.fromkeys(field for sample in places for field in sample)
    table = {field: np.array([sample.get(field, (-1, 0)) for sample in places], dtype=np.int64) for field in fields}
    offsets, sizes = ({field: column[:, axis] for field, column in table.items()} for axis in (0, 1))
    return offsets, sizes


def _plain_members(content: mmap.mmap | bytes) -> list[tuple[str, int, int]] | None:
    """Return path, offset and size of every member of a shard as TarWriter writes them, None where it is not such.

    Several times as quick as the standard library, which reads the others: those with anything but plain files with a
    USTAR header in perfect order.
    """
    members = []
    start = 0
    while (header := content[start : start + tarfile.BLOCKSIZE]) != _END:
        if len(header) != tarfile.BLOCKSIZE or header[257:265] != tarfile.POSIX_MAGIC or header[156] not in b"0\0":
            return None
        size, checksum = _octal(header[124:136]), _octal(header[148:156])
        if size is None or checksum != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            return None
        folder, path = (header[field].split(b"\0", 1)[0] for field in (slice(345, 500), slice(0, 100)))
        start += tarfile.BLOCKSIZE
        members.append(((folder + b"/" + path if folder else path).decode(errors="replace"), start, size))
        start += -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return members


def _octal(digits: bytes) -> int | None:
    digits = digits.strip(b" \0")
    return int(digits, 8) if digits.isdigit() and not set(digits) & set(b"89") else None


def _members(name: str, content: mmap.mmap | bytes) -> list[tuple[str, int, int]]:
    """Return path, offset and size of every plain file in a tar file of any dialect."""
    members = []
    stream: Any = io.BytesIO(content) if isinstance(content, bytes) else content
    stream.seek(0)
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        for member in archive:
            if member.issym() or member.islnk():
                raise _harmful(name, member.name, f"is a link to '{member.linkname}'")
            if member.isdev():
                raise _harmful(name, member.name, "is a device or a pipe")
            if member.issparse() or not (member.isreg() or member.isdir()):
                raise _harmful(name, member.name, "is no plain file")
            if member.isreg():
                members.append((member.name, member.offset_data, member.size))
        if content[archive.offset : archive.offset + tarfile.BLOCKSIZE] != _END:
            raise tarfile.ReadError("its end is missing")
    return members


def _harmful(name: str, path: str, fault: str) -> UserError:
    return UserError(
        f"shard {name} is refused: its member '{path}' {fault}; nothing was extracted or executed; get the shard from "
        "a source that you trust"
    )


def _split_name(path: str) -> tuple[str, str]:
    """Return key and field: the name is cut at the first dot of its last part."""
    folder, slash, name = path.removeprefix("./").rpartition("/")
    stem, _, field = name.partition(".")
    return f"{folder}{slash}{stem}", field.lower()
