"""Root-mean-square normalisation of rows, or its weight as a part of the matrix product that follows."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from zigma_pl.core.autocast import without_autocast
from zigma_pl.ops import scale_columns_cuda as cuda

__all__ = ["rms_norm", "scale_columns"]


def rms_norm(rows: Tensor, weight: Tensor, epsilon: float | None, num_groups: int = 1) -> Tensor:
    """Return rows / sqrt(mean(rows^2) + epsilon) * weight, with the mean over a group of channels (arXiv:1910.07467).

    Args:
        rows: (..., D).
        weight: (D,), rounded to the dtype of the rows, since PyTorch's fused kernel needs one dtype.
        epsilon: added to the mean square.
        num_groups: number of groups, which must divide D.

    Returns: a tensor with the shape and dtype of rows, also under autocast.
    """
    weight = weight.to(rows.dtype)
    with without_autocast(rows.device):  # on GPUs, it converts rows to float32 from PyTorch 2.13 on
        if num_groups == 1:
            return F.rms_norm(rows, rows.shape[-1:], weight, epsilon)
        parts = rows.unflatten(-1, (num_groups, -1))
        return F.rms_norm(parts, parts.shape[-1:], eps=epsilon).flatten(-2) * weight


def scale_columns(matrix: Tensor, factors: Tensor, dtype: torch.dtype) -> Tensor:
    """Return matrix (Y, X) * factors (X,), rounded once to a dtype.

    rms_norm(rows, weight) @ matrix.T is 1 / rms(rows) * (rows @ scale_columns(matrix, weight).T), see `UnscaledRows`.
    """
    if torch.compiler.is_compiling():  # the compiler fuses the conversions
        return (matrix * factors).to(dtype)
    out: Tensor = _ScaleColumns.apply(matrix, factors, dtype)
    return out


class _ScaleColumns(torch.autograd.Function):
    """The product with conversions of dtypes in the same kernels, as in the cast that autocast would run."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, factors: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(matrix, factors)
        if cuda.supports(matrix, factors, dtype):
            return cuda.forward(matrix, factors, dtype)
        return torch.mul(matrix, factors, out=torch.empty_like(matrix, dtype=dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor, None]:
        matrix, factors = ctx.saved_tensors
        if cuda.supports(matrix, factors, dout.dtype):
            return *cuda.backward(dout, matrix, factors), None
        dmatrix = torch.mul(dout, factors, out=torch.empty_like(matrix))
        return dmatrix, torch.mul(dout, matrix).sum(0).to(factors.dtype), None
