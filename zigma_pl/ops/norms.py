"""Residual sum, normalisation and adaptive modulation as one op, in plain PyTorch or in one pass on CUDA.

Axes: B batch, L tokens, D width.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from zigma_pl.ops import nvrtc
from zigma_pl.ops.norms_cuda import (
    MAX_WIDTH,
    ROW_KINDS,
    Inverses,
    Modulation,
    NormGradients,
    run_backward,
    run_forward,
)
from zigma_pl.ops.rows import UnscaledRows, inverse_order, take_rows

__all__ = ["add_norm_modulate"]


def add_norm_modulate(
    x: Tensor,
    branch: Tensor | UnscaledRows | None,
    gate: Tensor | None,
    weight: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    *,
    epsilon: float,
    centred: bool = False,
    branch_inverse: Tensor | None = None,
    out_inverse: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Add a branch to the residual stream, and normalise and modulate the sum for the next branch.

    x_new = x + gate * branch;  out = norm(x_new) * weight * (1 + scale) + shift   (adaLN-Zero, arXiv:2212.09748).

    x is in raster order. A branch with rows in visit order is read through the inverse of that order, and out can be
    written in visit order through the inverse, in the same pass over memory.

    Args:
        x: (B, L, D), the residual stream.
        branch: (B, L, D), output of the previous branch, or None; the CUDA kernels scale `UnscaledRows` at no cost.
        gate: (B, 1, D), gate of that branch.
        weight: (D,), weight of the norm, None for ones.
        shift: (B, 1, D).
        scale: (B, 1, D).
        epsilon: added to the mean square.
        centred: use LayerNorm without bias instead of RMSNorm.
        branch_inverse: (L,) or (B, L) integers, index of the branch row for each row of x; None for raster order.
        out_inverse: (L,) or (B, L) integers, index of the out row for each row of x; None for raster order.

    Returns: x_new in x's dtype (x itself without a branch), and out. On CUDA, out has the dtype of shift, which is a
        16-bit dtype under autocast, since only matrix products use it.
    """
    inverses = Inverses(None if branch is None else branch_inverse, out_inverse)
    if not runs_fused(x, shift):
        branch = branch.scaled() if isinstance(branch, UnscaledRows) else branch
        return _run_reference(x, branch, gate, weight, shift, scale, inverses, epsilon, centred)
    rows, *scaling = branch if isinstance(branch, UnscaledRows) else (branch, None, 0.0)
    inputs, keep = (x, rows, gate, weight, shift, scale), torch.is_grad_enabled()
    if torch.compiler.is_compiling():
        x_new, out, *_ = norm_forward(*inputs, *inverses, *scaling, epsilon, centred, keep)
    elif keep:  # an autograd.Function has several times less host overhead than a custom op
        x_new, out = _AddNormModulate.apply(epsilon, centred, inverses, *scaling, *inputs)
    else:
        modulation = Modulation(weight, shift, scale)
        x_new, out, *_ = run_forward(x, rows, gate, modulation, inverses, epsilon, centred, keep, *scaling)
    return (x if branch is None else x_new), out


def _run_reference(
    x: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    weight: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    inverses: Inverses,
    epsilon: float,
    centred: bool,
) -> tuple[Tensor, Tensor]:
    if branch is not None:
        assert gate is not None
        x = torch.addcmul(x, gate, branch if inverses.branch is None else take_rows(branch, inverses.branch))
    width = (x.shape[-1],)
    normalised = F.layer_norm(x, width, weight, eps=epsilon) if centred else F.rms_norm(x, width, weight, epsilon)
    out = torch.addcmul(shift, normalised, 1 + scale)
    return x, out if inverses.out is None else take_rows(out, inverse_order(inverses.out))


def runs_fused(x: Tensor, shift: Tensor) -> bool:
    """Return whether the CUDA kernels support these tensors; rows must start at multiples of 16 bytes."""
    return (
        x.is_cuda
        and x.shape[-1] % 8 == 0
        and x.shape[-1] <= MAX_WIDTH
        and shift.dtype in ROW_KINDS
        and x.dtype in (torch.float32, shift.dtype)
        and nvrtc.is_available()
    )


class _AddNormModulate(torch.autograd.Function):
    """The CUDA implementation in eager mode."""

    @staticmethod
    def forward(
        ctx: Any,
        epsilon: float,
        centred: bool,
        inverses: Inverses,
        squares: Tensor | None,
        branch_epsilon: float,
        x: Tensor,
        branch: Tensor | None,
        gate: Tensor | None,
        weight: Tensor | None,
        shift: Tensor,
        scale: Tensor,
    ) -> tuple[Tensor, Tensor]:
        modulation = Modulation(weight, shift, scale)
        scaling = (squares, branch_epsilon)
        x_new, out, *kept = run_forward(x, branch, gate, modulation, inverses, epsilon, centred, True, *scaling)
        ctx.options, ctx.branch_epsilon = (centred, x.dtype), branch_epsilon
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept, *inverses, squares, branch, gate, weight, shift, scale)
        return x_new, out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx_new: Tensor | None, dout: Tensor | None) -> tuple[Tensor | None, ...]:
        # Read only once: under activation checkpointing a second access is an error.
        normalised, rstd, *moved, squares, branch, gate, weight, shift, scale = ctx.saved_tensors
        vectors = (weight, shift, scale)
        if dout is None:
            dout = torch.zeros_like(normalised)
        kept, modulation = (normalised, rstd), Modulation(*vectors)
        dsquares = _new_dsquares(squares)
        scaling = (squares, ctx.branch_epsilon, dsquares)
        options = (modulation, Inverses(*moved), *ctx.options, *scaling)
        gradients = run_backward(dx_new, dout, kept, branch, gate, *options)
        inputs = (None, branch, gate, *vectors)
        given = (g if g is None or t is None else g.to(t.dtype) for g, t in zip(gradients, inputs, strict=True))
        return None, None, None, None if dsquares is None else dsquares.expand_as(squares), None, *given


def _new_dsquares(squares: Tensor | None) -> Tensor | None:
    """Allocate the gradient of mean squares (B, L, K), which all parts of a row have in common: (B, L, 1)."""
    return None if squares is None else squares.new_empty(*squares.shape[:2], 1, dtype=torch.float32)


# ------------------------------------------------------------------------------------- custom ops, for torch.compile
@torch.library.custom_op("zigma_pl::add_norm_modulate", mutates_args=())
def norm_forward(
    x: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    weight: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    branch_inverse: Tensor | None,
    out_inverse: Tensor | None,
    squares: Tensor | None,
    branch_epsilon: float,
    epsilon: float,
    centred: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the fields of a `NormForward`."""
    modulation, inverses = Modulation(weight, shift, scale), Inverses(branch_inverse, out_inverse)
    scaling = (squares, branch_epsilon)
    forward = run_forward(x, branch, gate, modulation, inverses, epsilon, centred, keep, *scaling)
    return forward.x_new, forward.out, forward.normalised, forward.rstd


@norm_forward.register_fake
def _(
    x: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    weight: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    branch_inverse: Tensor | None,
    out_inverse: Tensor | None,
    squares: Tensor | None,
    branch_epsilon: float,
    epsilon: float,
    centred: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return fake_forward(x, branch is not None, shift.dtype, keep)


def fake_forward(x: Tensor, gated: bool, dtype: torch.dtype, keep: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return empty tensors like the result of `run_forward`."""
    new = functools.partial(torch.empty, device=x.device)
    return (
        new(x.shape if gated else 0, dtype=x.dtype),
        new(x.shape, dtype=dtype),
        new(x.shape if keep else 0, dtype=dtype),
        new(x.shape[:2] if keep else 0, dtype=torch.float32),
    )


@torch.library.custom_op("zigma_pl::add_norm_modulate_backward", mutates_args=())
def norm_backward(
    dx_new: Tensor | None,
    dout: Tensor,
    normalised: Tensor,
    rstd: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    weight: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    branch_inverse: Tensor | None,
    out_inverse: Tensor | None,
    squares: Tensor | None,
    branch_epsilon: float,
    centred: bool,
    stream: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return `NormGradients` in the dtypes of the inputs, and the gradient of squares; empty for absent arguments."""
    modulation, inverses = Modulation(weight, shift, scale), Inverses(branch_inverse, out_inverse)
    dsquares = _new_dsquares(squares)
    options = (modulation, inverses, centred, stream, squares, branch_epsilon, dsquares)
    gradients = run_backward(dx_new, dout, (normalised, rstd), branch, gate, *options)
    given = like_inputs(gradients, (None, branch, gate, weight, shift, scale))
    return *given, normalised.new_empty(0) if dsquares is None else dsquares


def like_inputs(gradients: NormGradients, inputs: tuple[Tensor | None, ...]) -> Any:
    """Return the gradients in the inputs' dtypes, with empty tensors for None, which a custom op cannot return."""
    return tuple(
        gradients.x.new_empty(0) if g is None else g if t is None else g.to(t.dtype)
        for g, t in zip(gradients, inputs, strict=True)
    )


@norm_backward.register_fake
def _(
    dx_new: Tensor | None,
    dout: Tensor,
    normalised: Tensor,
    rstd: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    weight: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    branch_inverse: Tensor | None,
    out_inverse: Tensor | None,
    squares: Tensor | None,
    branch_epsilon: float,
    centred: bool,
    stream: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dsquares = _new_dsquares(squares)
    given = fake_gradients(normalised, branch, gate, weight, shift, scale, stream)
    return *given, normalised.new_empty(0) if dsquares is None else dsquares


def fake_gradients(normalised: Tensor, *inputs: Any) -> Any:
    """Return empty tensors like the result of `norm_backward`, given branch to scale and the dtype of the stream."""
    *tensors, stream = inputs
    dx = torch.empty(normalised.shape, dtype=stream, device=normalised.device)
    return (dx, *(dx.new_empty(0) if t is None else dx.new_empty(t.shape, dtype=t.dtype) for t in tensors))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, *tensors, ctx.branch_epsilon, _, ctx.centred, _ = inputs
    ctx.stream = x.dtype
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[2:], *tensors)


def _backward(ctx: Any, dx_new: Tensor | None, dout: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    normalised, *rest = ctx.saved_tensors  # only once: under activation checkpointing a second access is an error
    if dout is None:
        dout = torch.zeros_like(normalised)
    *gradients, dsquares = norm_backward(dx_new, dout, normalised, *rest, ctx.branch_epsilon, ctx.centred, ctx.stream)
    squares, present = rest[-1], (True, *(t is not None for t in rest[1:-3]))
    given = (g if there else None for g, there in zip(gradients, present, strict=True))
    return *given, None, None, None if squares is None else dsquares.expand_as(squares), None, None, None, None


norm_forward.register_autograd(_backward, setup_context=_setup_context)
