"""Reading untrusted NumPy files: memory-mapped, and checked against the file size before anything is allocated."""

import os
from io import BytesIO
from math import prod
from pathlib import Path
from typing import IO
from zipfile import ZIP_STORED, ZipFile

import numpy as np
import torch

from zigma_pl.core.files import open_regular


def map_npy(path: Path) -> np.ndarray:
    """Return a NumPy file's array as a copy-on-write memory map.

    Uses torch.from_file, since numpy.memmap keeps a file descriptor open per file, and there may be thousands.

    Raises:
        OSError: the file cannot be opened, or is not a regular file.
        ValueError: the file is not exactly one array of plain numbers.
    """
    with open_regular(path) as file:
        shape, fortran_order, dtype = _checked_header(file, os.fstat(file.fileno()).st_size)
        start = file.tell()
    if prod(shape) == 0:
        return np.empty(shape, dtype)
    mapped = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8).numpy()
    return mapped[start:].view(dtype).reshape(shape, order="F" if fortran_order else "C")


def read_npz(path: Path, *names: str) -> list[np.ndarray]:
    """Return arrays of an uncompressed .npz file, as written by `numpy.savez`; checksums are verified.

    Raises:
        OSError: the file cannot be opened, or is not a regular file.
        ValueError: an array is missing, damaged, compressed, or has elements other than plain numbers.
    """
    with open_regular(path) as file:
        try:
            with ZipFile(file) as archive:
                return [_stored_array(archive, name, os.fstat(file.fileno()).st_size) for name in names]
        except Exception as error:  # zipfile raises many kinds of errors, such as NotImplementedError and struct.error
            raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


def _stored_array(archive: ZipFile, name: str, num_bytes: int) -> np.ndarray:
    entry = archive.getinfo(f"{name}.npy")
    if entry.compress_type != ZIP_STORED or not entry.file_size == entry.compress_size <= num_bytes:
        raise ValueError(f"{name} is compressed, or larger than the file")
    with archive.open(entry) as stored:
        content = BytesIO(stored.read())
    shape, fortran_order, dtype = _checked_header(content, entry.file_size)
    array = np.frombuffer(content.read(), dtype)
    return array.reshape(shape, order="F" if fortran_order else "C").copy()


def _checked_header(file: IO[bytes], num_bytes: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, Fortran order and dtype from the header of an array; num_bytes counts header and data."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not version 1.0 of the format")
    try:
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # NumPy parses the header as Python and does not catch all errors
        raise ValueError(f"invalid header: {' '.join(str(error).split())[:80]}") from error
    if dtype.hasobject or min(shape, default=0) < 0 or prod(shape) * dtype.itemsize != num_bytes - file.tell():
        raise ValueError(f"the header declares {dtype} {shape}, which does not match the data")
    return shape, fortran_order, dtype
