"""Products of a matrix and one factor per column on NVIDIA GPUs: CUDA C++ compiled at run time, one pass per direction.

Axes: Y rows, X columns.
"""

import functools
from pathlib import Path

import torch
from torch import Tensor

from zigma_pl.ops import nvrtc
from zigma_pl.ops.column_sums import sum_of_parts
from zigma_pl.ops.nvrtc import ROW_KINDS, num_multiprocessors, rows_of_block

WARPS, GROUP, RESIDENT = 8, 4, 4  # RESIDENT: blocks per multiprocessor
COLUMNS = 128  # of a block

_FOLDER = Path(__file__).parent
_NUM_FIELDS = 9  # in struct Params of scale_columns.cu


def supports(matrix: Tensor, factors: Tensor, dtype: torch.dtype) -> bool:
    """Return whether the kernels support these float32 tensors and products of this dtype."""
    return (
        matrix.is_cuda
        and dtype in ROW_KINDS
        and all(t.dtype is torch.float32 and t.is_contiguous() and not t.data_ptr() % 16 for t in (matrix, factors))
        and matrix.shape[1] % COLUMNS == 0
        and 0 < matrix.numel() < 2**31
        and nvrtc.available()[0]
    )


def forward(matrix: Tensor, factors: Tensor, dtype: torch.dtype) -> Tensor:
    """Return matrix (Y, X) * factors (X,), rounded once to a dtype."""
    products = torch.empty_like(matrix, dtype=dtype)
    _launch("scale_columns", matrix, factors, products=products)
    return products


def backward(dproducts: Tensor, matrix: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of matrix and factors, in float32, given that of the products.

    Deterministic, since sums are taken in a fixed order.
    """
    dproducts = dproducts.contiguous()
    if dproducts.data_ptr() % 16:
        dproducts = dproducts.clone()
    dmatrix = torch.empty_like(matrix)
    sums = matrix.new_empty(-(-len(matrix) // _chunk_rows(matrix)), matrix.shape[1])
    _launch("scale_columns_backward", matrix, factors, dproducts=dproducts, dmatrix=dmatrix, sums=sums)
    return dmatrix, sum_of_parts(sums, torch.float32)


def _chunk_rows(matrix: Tensor) -> int:
    """Return the number of rows per block."""
    num_rows, num_columns = matrix.shape
    room = max(1, RESIDENT * num_multiprocessors(matrix.device.index or 0) * COLUMNS // num_columns)
    return rows_of_block(num_rows, room, WARPS, num_rows + WARPS)


def _launch(
    name: str,
    matrix: Tensor,
    factors: Tensor,
    products: Tensor | None = None,
    dproducts: Tensor | None = None,
    dmatrix: Tensor | None = None,
    sums: Tensor | None = None,
) -> None:
    rows = products if dproducts is None else dproducts
    assert rows is not None
    tensors = (matrix, factors, products, dproducts, dmatrix, sums)
    num_rows, num_columns = matrix.shape
    chunk_rows = _chunk_rows(matrix)
    fields = [0 if t is None else t.data_ptr() for t in tensors] + [num_rows, num_columns, chunk_rows]
    grid = (num_columns // COLUMNS, -(-num_rows // chunk_rows), 1)
    _kernel(name, ROW_KINDS[rows.dtype], matrix.device.index or 0)(grid, fields)


@functools.cache
def _kernel(name: str, row_kind: int, device: int) -> nvrtc.Kernel:
    options = {"ROW_KIND": row_kind, "WIDTH": COLUMNS, "WARPS": WARPS, "GROUP": GROUP, "COLUMNS": COLUMNS}
    return nvrtc.load(
        (_FOLDER / "device.cu", _FOLDER / "norm_rows.cu", _FOLDER / "scale_columns.cu"),
        name,
        tuple(options.items()),
        threads=32 * WARPS,
        shared_bytes=4 * COLUMNS * WARPS,
        num_fields=_NUM_FIELDS,
        device=device,
    )
