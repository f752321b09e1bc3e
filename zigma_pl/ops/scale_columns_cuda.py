"""Products of matrices and one factor per column on NVIDIA GPUs: CUDA C++ compiled at run time, one pass per direction.

Axes: Y rows, X columns.
"""

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from zigma_pl.ops import nvrtc
from zigma_pl.ops.column_sums import sum_of_parts
from zigma_pl.ops.nvrtc import ROW_KINDS, num_multiprocessors, rows_of_block

WARPS, GROUP, RESIDENT = 8, 4, 4  # RESIDENT: blocks per multiprocessor
LONGEST = 128  # maximum number of rows per block
COLUMNS = 128  # of a block
MAX_MATRICES = 64  # of a launch, whose parameters may take 4 KiB

_FOLDER = Path(__file__).parent


def supports(matrices: Sequence[Tensor], factors: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Return whether the kernels support these tensors, with matrices of one shape, and products of this dtype."""
    return (
        matrices[0].is_cuda
        and dtype in ROW_KINDS
        and all(_is_supported(tensor) for tensor in (*matrices, *factors))
        and matrices[0].shape[1] % COLUMNS == 0
        and 0 < matrices[0].numel() < 2**31
        and len(matrices) <= MAX_MATRICES
        and nvrtc.available()[0]
    )


def _is_supported(tensor: Tensor) -> bool:
    return tensor.dtype is torch.float32 and tensor.is_contiguous() and not tensor.data_ptr() % 16


def forward(matrices: Sequence[Tensor], factors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return each matrix (Y, X) * its factors (X,), rounded once to a dtype."""
    products = [torch.empty_like(matrix, dtype=dtype) for matrix in matrices]
    tensors = [(*inputs, None, None) for inputs in zip(matrices, factors, products, strict=True)]
    _launch("scale_columns", tensors, None, dtype)
    return products


def backward(
    dproducts: Sequence[Tensor], matrices: Sequence[Tensor], factors: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradients of matrices and factors, in float32, given those of the products.

    Deterministic, since sums are taken in a fixed order.
    """
    dproducts = [d.clone() if d.data_ptr() % 16 else d for d in (d.contiguous() for d in dproducts)]
    dmatrices = [torch.empty_like(matrix) for matrix in matrices]
    (num_rows, num_columns), count = matrices[0].shape, len(matrices)
    sums = matrices[0].new_empty(-(-num_rows // _chunk_rows(matrices[0], count)), count * num_columns)
    tensors = [(m, f, None, d, dm) for m, f, d, dm in zip(matrices, factors, dproducts, dmatrices, strict=True)]
    _launch("scale_columns_backward", tensors, sums, dproducts[0].dtype)
    return dmatrices, list(sum_of_parts(sums, torch.float32).view(count, num_columns).unbind())


def _chunk_rows(matrix: Tensor, count: int) -> int:
    """Return the number of rows per block."""
    num_rows, num_columns = matrix.shape
    room = RESIDENT * num_multiprocessors(matrix.device.index or 0) * COLUMNS // (num_columns * count)
    return rows_of_block(num_rows, max(1, room), WARPS, LONGEST)


def _launch(name: str, tensors: Sequence[tuple[Tensor | None, ...]], sums: Tensor | None, dtype: torch.dtype) -> None:
    """Launch a kernel with the fields of struct Tensors for each matrix."""
    matrix, count = tensors[0][0], len(tensors)
    assert matrix is not None
    num_rows, num_columns = matrix.shape
    chunk_rows = _chunk_rows(matrix, count)
    fields = [0 if t is None else t.data_ptr() for t in (*itertools.chain(*tensors), sums)]
    grid = (num_columns // COLUMNS, -(-num_rows // chunk_rows), count)
    kernel = _kernel(name, ROW_KINDS[dtype], count, matrix.device.index or 0)
    kernel(grid, (*fields, num_rows, num_columns, chunk_rows))


@functools.cache
def _kernel(name: str, row_kind: int, count: int, device: int) -> nvrtc.Kernel:
    options = {
        "ROW_KIND": row_kind,
        "MATRICES": count,
        "WIDTH": COLUMNS,
        "WARPS": WARPS,
        "GROUP": GROUP,
        "COLUMNS": COLUMNS,
    }
    return nvrtc.load(
        (_FOLDER / "device.cu", _FOLDER / "norm_rows.cu", _FOLDER / "scale_columns.cu"),
        name,
        tuple(options.items()),
        threads=32 * WARPS,
        shared_bytes=4 * COLUMNS * WARPS,
        num_fields=5 * count + 4,
        device=device,
    )
