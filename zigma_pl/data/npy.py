"""NumPy files that may come from anybody: mapped, not loaded, and nothing is allocated on the word of their header."""

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
    """Return a NumPy file's array as a view of the file; writing to it does not change the file.

    PyTorch maps it, and not numpy.memmap, which would keep one file descriptor for each of thousands of files.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
        ValueError: it is not an array of plain numbers that fills the file.
    """
    with open_regular(path) as file:
        shape, fortran_order, dtype = _checked_header(file, os.fstat(file.fileno()).st_size)
        start = file.tell()
    if prod(shape) == 0:
        return np.empty(shape, dtype)
    mapped = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8).numpy()
    return mapped[start:].view(dtype).reshape(shape, order="F" if fortran_order else "C")


def read_npz(path: Path, *names: str) -> list[np.ndarray]:
    """Return arrays of an uncompressed .npz file, as `numpy.savez` writes it, with their checksums compared.

    Raises:
        OSError: the file cannot be opened, or is not a regular file.
        ValueError: it lacks an array, is damaged or compressed, or holds something else than plain numbers.
    """
    with open_regular(path) as file:
        try:
            with ZipFile(file) as archive:
                return [_stored_array(archive, name, os.fstat(file.fileno()).st_size) for name in names]
        except Exception as error:  # zipfile too lets many kinds through, such as NotImplementedError and struct.error
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
    """Read the header of an array of num_bytes with the header: shape, whether in Fortran order, and type."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("it is not of version 1.0 of the format")
    try:
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # NumPy parses the header as Python and lets some of its errors through
        raise ValueError(f"its header cannot be read: {' '.join(str(error).split())[:80]}") from error
    if dtype.hasobject or min(shape, default=0) < 0 or prod(shape) * dtype.itemsize != num_bytes - file.tell():
        raise ValueError(f"its header says {dtype} {shape}, which is not what follows")
    return shape, fortran_order, dtype
