"""Reading .safetensors files: shapes without allocating memory, then values."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.core.records import one_line

MAX_HEADER_BYTES = 16 * 2**20  # far more than any network needs; the library itself accepts 100 MB
_FLOATING = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def stored_shapes(path: Path, remedy: str) -> dict[str, Tensor]:
    """Return tensors on the meta device with the shapes and dtypes in the file's header, by name.

    Args:
        path: the .safetensors file; only its header is read.
        remedy: how to fix a damaged file, for the end of the error message.

    Raises:
        UserError: the file is missing, no regular file, truncated or damaged, or holds tensors that are not floating
            point.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing or not a regular file: {remedy}")
    try:
        with path.open("rb") as file:
            num_bytes = int.from_bytes(file.read(8), "little")
        if num_bytes > MAX_HEADER_BYTES:
            raise UserError(f"{path} cannot be read (its header claims {num_bytes:,} bytes): {remedy}")
        with safe_open(path, "pt") as tensors:
            parts = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118  no mapping
            return {
                name: torch.empty(part.get_shape(), dtype=_FLOATING[part.get_dtype()], device="meta")
                for name, part in parts.items()
            }
    except KeyError as error:
        raise UserError(f"{path} holds tensors of dtype {error}, expected floating point: {remedy}") from error
    except (SafetensorError, OSError, RuntimeError, TypeError) as error:  # the last two for sizes beyond 64 bits
        reason = one_line(str(error))
        raise UserError(f"{path} is truncated or damaged ({reason}): {remedy}") from error


def read_tensors(path: Path, remedy: str) -> dict[str, Tensor]:
    """Return a file's tensors by name, on the CPU.

    Raises:
        UserError: see `stored_shapes`.
    """
    stored_shapes(path, remedy)
    return load_file(path)
