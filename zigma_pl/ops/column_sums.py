"""Sums over the rows of a matrix on NVIDIA GPUs, such as gradients of biases: CUDA C++ compiled at run time.

PyTorch's kernel takes several times as long as reading the rows, if there are many rows or few columns.

Axes: N rows, E columns.
"""

import functools
from pathlib import Path

import torch
from torch import Tensor

from zigma_pl.ops import nvrtc
from zigma_pl.ops.nvrtc import ROW_KINDS, num_multiprocessors, rows_of_block

WARPS, GROUP, RESIDENT = 8, 4, 4  # RESIDENT: blocks per multiprocessor
FINAL_WARPS, FINAL_GROUP = 16, 16

_FOLDER = Path(__file__).parent
_NUM_FIELDS = 6  # in struct Params of column_sums.cu


def supports(rows: Tensor) -> bool:
    """Return whether the kernels can sum these rows."""
    return rows.is_cuda and rows.dtype in ROW_KINDS and nvrtc.is_available()


def column_sums(rows: Tensor) -> Tensor:
    """Return the sums over rows (N, E) of a dtype in ROW_KINDS, added in float32: (E,) in the dtype of the rows.

    Deterministic, since sums are taken in a fixed order.
    """
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    num_rows, num_columns = rows.shape
    size = rows.element_size()
    is_aligned = not (rows.data_ptr() | rows.stride(0) * size | num_columns * size) % 16
    vector = 16 // size if is_aligned else 1
    blocks = -(-num_columns // (32 * vector))
    room = max(1, RESIDENT * num_multiprocessors(rows.device.index or 0) // blocks)
    chunk_rows = rows_of_block(num_rows, room, WARPS, num_rows + WARPS)
    parts = torch.empty(-(-num_rows // chunk_rows), num_columns, dtype=torch.float32, device=rows.device)
    _launch(rows, parts, rows.dtype, chunk_rows, vector)
    return sum_of_parts(parts, rows.dtype)


def sum_of_parts(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sums over contiguous float32 rows (N, E), of which there are at most a few hundred: (E,) in a dtype.

    Deterministic, since sums are taken in a fixed order.
    """
    sums = torch.empty(parts.shape[1], dtype=dtype, device=parts.device)
    _launch(parts, sums, dtype, len(parts))
    return sums


def _launch(rows: Tensor, sums: Tensor, dtype: torch.dtype, chunk_rows: int, vector: int = 0) -> None:
    """Launch the kernel that reads rows, or without `vector` the one that adds float32 sums."""
    num_rows, num_columns = rows.shape
    kernel = _kernel(ROW_KINDS[dtype], vector or 1, not vector, rows.device.index or 0)
    grid = (-(-num_columns // (32 * (vector or 1))), -(-num_rows // chunk_rows), 1)
    kernel(grid, (rows.data_ptr(), sums.data_ptr(), rows.stride(0), num_rows, num_columns, chunk_rows))


@functools.cache
def _kernel(row_kind: int, vector: int, final: bool, device: int) -> nvrtc.Kernel:
    warps, group = (FINAL_WARPS, FINAL_GROUP) if final else (WARPS, GROUP)
    options = {"ROW_KIND": row_kind, "VECTOR": vector, "FINAL": int(final), "WARPS": warps, "GROUP": group}
    return nvrtc.load(
        (_FOLDER / "device.cu", _FOLDER / "column_sums.cu"),
        "column_sums",
        tuple(options.items()),
        threads=32 * warps,
        shared_bytes=4 * 32 * vector * warps,
        num_fields=_NUM_FIELDS,
        device=device,
    )
