"""NumPy files that may come from anybody: mapped, not loaded, and nothing is allocated on the word of their header."""

from math import prod
from pathlib import Path

import numpy as np
import torch

from zigma_pl.files import open_regular


def map_npy(path: Path) -> np.ndarray:
    """Return a NumPy file's array as a view of the file; writing to it does not change the file.

    PyTorch maps it, and not numpy.memmap, which would keep one file descriptor for each of thousands of files.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
        ValueError: it is not an array of plain numbers that fills the file.
    """
    with open_regular(path) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("it is not of version 1.0 of the format")
        try:
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        except Exception as error:  # NumPy parses the header as Python and lets some of its errors through
            raise ValueError(f"its header cannot be read: {' '.join(str(error).split())[:80]}") from error
        start = file.tell()
        file.seek(0, 2)
        num_bytes = file.tell()
    if dtype.hasobject or min(shape, default=0) < 0 or prod(shape) * dtype.itemsize != num_bytes - start:
        raise ValueError(f"its header says {dtype} {shape}, which is not what follows")
    if num_bytes == start:
        return np.empty(shape, dtype)
    mapped = torch.from_file(str(path), shared=False, size=num_bytes, dtype=torch.uint8).numpy()
    return mapped[start:].view(dtype).reshape(shape, order="F" if fortran_order else "C")
