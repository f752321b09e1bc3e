"""Linear maps of rows with a bias, whose gradient takes one pass over the rows on CUDA."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from zigma_pl.ops import nvrtc
from zigma_pl.ops.column_sums import column_sums, supports

MIN_ROWS = 4096  # below, PyTorch's sum takes about as long as two launches


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return rows weight^T + bias, like `torch.nn.functional.linear`, also under autocast.

    Args:
        rows: (..., K).
        weight: (E, K).
        bias: (E,).
    """
    if bias is None or not _sums_fused(rows, bias):
        return F.linear(rows, weight, bias)
    if torch.is_autocast_enabled(rows.device.type):
        bias = bias.to(torch.get_autocast_dtype(rows.device.type))
    # For rows that are not contiguous, PyTorch would add the bias in a separate kernel. For rows with more than two
    # axes, it would return a view, whose modification by `_BiasGradient` would cost a copy of the gradient.
    out = F.linear(rows.contiguous().flatten(0, -2), weight, bias.detach())
    biased: Tensor = _BiasGradient.apply(out, bias)
    return biased.unflatten(0, rows.shape[:-1])


def _sums_fused(rows: Tensor, bias: Tensor) -> bool:
    """Return whether the gradient of the bias is wanted and the CUDA kernels support it."""
    return (
        rows.numel() >= MIN_ROWS * rows.shape[-1]
        and bias.requires_grad
        and torch.is_grad_enabled()
        and nvrtc.runs_eagerly(rows)
        and supports(rows)
    )


class _BiasGradient(torch.autograd.Function):
    """Returns the output of a linear map, (N, E), and passes the gradient on to it and to the bias that it contains."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, bias: Tensor) -> Tensor:
        ctx.mark_dirty(out)  # a view of it could not be changed in place afterwards
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor]:
        return dout, column_sums(dout)
