"""Conversion of the gradients of B and C from the order in which the CUDA kernels of SSD add them.

Axes: B batch, L tokens, G groups, N state.
"""

import functools
from pathlib import Path

import torch
from torch import Tensor

from zigma_pl.ops import nvrtc
from zigma_pl.ops.nvrtc import ROW_KINDS

THREADS, GROUP = 128, 4

_FOLDER = Path(__file__).parent
_NUM_FIELDS = 5  # in struct Params of terms.cu


def ordered(terms: Tensor) -> Tensor:
    """Return added gradients (..., N), N a multiple of 16, in the order of the states: (..., N / 16, 2, 4, 2), a view.

    See write_term in gradients.cu.
    """
    return terms.unflatten(-1, (-1, 4, 2, 2)).transpose(-3, -2)


def copy_ordered(terms: Tensor, rows: Tensor) -> None:
    """Copy added gradients to rows in the order of the states; faster than PyTorch with 16-bit rows on a GPU.

    Args:
        terms: (B, L, 2, G, N) float32, contiguous, N a multiple of 16.
        rows: (B, L, 2 G N), such as columns of wider rows.
    """
    if not _supports(terms, rows):
        view = ordered(terms)
        rows.unflatten(-1, view.shape[2:]).copy_(view)
        return
    num_rows, row_quads = len(rows) * rows.shape[1], rows.shape[2] // 4
    grid = (-(-num_rows * row_quads // (THREADS * GROUP)), 1, 1)
    kernel = _kernel(ROW_KINDS[rows.dtype], rows.device.index or 0)
    kernel(grid, (terms.data_ptr(), rows.data_ptr(), rows.stride(1), num_rows, row_quads))


def _supports(terms: Tensor, rows: Tensor) -> bool:
    return rows.is_cuda and _is_aligned(terms, rows) and nvrtc.available()[0]


def _is_aligned(terms: Tensor, rows: Tensor) -> bool:
    """Return whether the kernel can read terms by 16 bytes and write rows, which must be evenly spaced, by 4 bytes."""
    sample, row, column = rows.stride()
    return (
        rows.dtype in (torch.bfloat16, torch.float16)
        and column == 1
        and (len(rows) == 1 or sample == rows.shape[1] * row)
        and not (terms.data_ptr() % 16 or rows.data_ptr() % 4 or row % 2)
        and terms.numel() < 2**31
    )


@functools.cache
def _kernel(row_kind: int, device: int) -> nvrtc.Kernel:
    options = {"ROW_KIND": row_kind, "THREADS": THREADS, "GROUP": GROUP}
    return nvrtc.load(
        (_FOLDER.parent / "device.cu", _FOLDER / "terms.cu"),
        "copy_terms",
        tuple(options.items()),
        threads=THREADS,
        shared_bytes=0,
        num_fields=_NUM_FIELDS,
        device=device,
    )
