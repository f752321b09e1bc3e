"""Root-mean-square normalisation of rows, or of groups of their channels, in plain PyTorch or in one pass on CUDA."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from zigma_pl.core.autocast import without_autocast
from zigma_pl.ops import nvrtc
from zigma_pl.ops import rms_norm_cuda as cuda

__all__ = ["rms_norm"]


def rms_norm(rows: Tensor, weight: Tensor, epsilon: float, num_groups: int = 1) -> Tensor:
    """Return rows / sqrt(mean(rows^2) + epsilon) * weight, with the mean over a group of channels (arXiv:1910.07467).

    Args:
        rows: (..., D).
        weight: (D,), rounded to the dtype of the rows.
        epsilon: added to the mean square.
        num_groups: number of groups, which must divide D.

    Returns: a tensor with the shape and dtype of rows, also under autocast.
    """
    keep = torch.is_grad_enabled() and (rows.requires_grad or weight.requires_grad)
    compiled_inference = torch.compiler.is_compiling() and not keep  # the compiler's own kernel is as fast
    if compiled_inference or not runs_fused(rows, num_groups):
        return run_reference(rows, weight, epsilon, num_groups)
    if not nvrtc.runs_eagerly(rows):
        return norm_forward(rows, weight, num_groups, epsilon, keep)[0]
    if keep:  # an autograd.Function has several times less host overhead than a custom op
        out: Tensor = _RmsNorm.apply(rows, weight, num_groups, epsilon)
        return out
    return cuda.forward(rows, weight, num_groups, epsilon, keep)[0]


def run_reference(rows: Tensor, weight: Tensor, epsilon: float | None, num_groups: int = 1) -> Tensor:
    """Return the same in plain PyTorch, whose fused kernel needs rows and weight of one dtype."""
    weight = weight.to(rows.dtype)
    with without_autocast(rows.device):  # on GPUs, it converts rows to float32 from PyTorch 2.13 on
        if num_groups == 1:
            return F.rms_norm(rows, rows.shape[-1:], weight, epsilon)
        parts = rows.unflatten(-1, (num_groups, -1))
        return F.rms_norm(parts, parts.shape[-1:], eps=epsilon).flatten(-2) * weight


def runs_fused(rows: Tensor, num_groups: int) -> bool:
    """Return whether the CUDA kernels support these rows; groups must start at multiples of 16 bytes."""
    width = rows.shape[-1] // num_groups
    return (
        rows.is_cuda
        and rows.dtype in nvrtc.ROW_KINDS
        and rows.numel() > 0
        and width % 8 == 0
        and width * rows.element_size() <= cuda.MAX_ROW_BYTES
        and nvrtc.is_available()
    )


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, num_groups: int, epsilon: float) -> Tensor:
        out, rstd = cuda.forward(rows, weight, num_groups, epsilon, keep=True)
        ctx.save_for_backward(rows, weight, rstd)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, rstd = ctx.saved_tensors
        dx, dweight = cuda.backward(dout, rows, weight, rstd)
        return dx, dweight.to(weight.dtype), None, None


# ------------------------------------------------------------------------------------- custom ops, for torch.compile
@torch.library.custom_op("zigma_pl::rms_norm", mutates_args=())
def norm_forward(rows: Tensor, weight: Tensor, num_groups: int, epsilon: float, keep: bool) -> tuple[Tensor, Tensor]:
    """Custom op of `rms_norm_cuda.forward`."""
    return cuda.forward(rows, weight, num_groups, epsilon, keep)


@norm_forward.register_fake
def _(rows: Tensor, weight: Tensor, num_groups: int, epsilon: float, keep: bool) -> tuple[Tensor, Tensor]:
    kept = (rows.numel() // rows.shape[-1], num_groups) if keep else (0,)
    return torch.empty_like(rows.contiguous()), rows.new_empty(kept, dtype=torch.float32)


@torch.library.custom_op("zigma_pl::rms_norm_backward", mutates_args=())
def norm_backward(dout: Tensor, rows: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Custom op of `rms_norm_cuda.backward`, with the gradient of the weight in the dtype of the weight."""
    dx, dweight = cuda.backward(dout, rows, weight, rstd)
    return dx, dweight.to(weight.dtype)


@norm_backward.register_fake
def _(dout: Tensor, rows: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(rows.contiguous()), weight.new_empty(weight.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    rows, weight, *_ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(rows, weight, output[1])


def _backward(ctx: Any, dout: Tensor, _: None) -> tuple[Tensor | None, ...]:
    return *norm_backward(dout, *ctx.saved_tensors), None, None, None


norm_forward.register_autograd(_backward, setup_context=_setup_context)
