"""Root-mean-square normalisation of rows, or its weight as a part of the matrix product that follows."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from zigma_pl.core.autocast import without_autocast
from zigma_pl.ops import scale_columns_cuda as cuda

__all__ = ["rms_norm", "scale_columns", "scale_columns_of_all"]


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
    return scale_columns_of_all([(matrix, factors)], dtype)[0]


def scale_columns_of_all(pairs: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype) -> list[Tensor]:
    """Return `scale_columns` of several matrices and their factors; matrices of one shape share kernels on a GPU."""
    products: dict[int, Tensor] = {}
    shapes = [matrix.shape for matrix, _ in pairs]
    for shape in dict.fromkeys(shapes):
        indices = [index for index, other in enumerate(shapes) if other == shape]
        matrices, factors = zip(*(pairs[index] for index in indices), strict=True)
        products |= zip(indices, _ScaleColumns.apply(dtype, *matrices, *factors), strict=True)
    return [products[index] for index in range(len(pairs))]


class _ScaleColumns(torch.autograd.Function):
    """The products with conversions of dtypes in the same kernels, as in the cast that autocast would run."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*tensors)
        matrices, factors = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        if cuda.supports(matrices, factors, dtype):
            return tuple(cuda.forward(matrices, factors, dtype))
        pairs = zip(matrices, factors, strict=True)
        return tuple(torch.mul(m, f, out=torch.empty_like(m, dtype=dtype)) for m, f in pairs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dproducts: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        matrices, factors = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        if cuda.supports(matrices, factors, dproducts[0].dtype):
            dmatrices, dfactors = cuda.backward(dproducts, matrices, factors)
            return None, *dmatrices, *dfactors
        triples = list(zip(dproducts, matrices, factors, strict=True))
        return (
            None,
            *(torch.mul(d, f, out=torch.empty_like(m)) for d, m, f in triples),
            *(torch.mul(d, m).sum(0).to(f.dtype) for d, m, f in triples),
        )
