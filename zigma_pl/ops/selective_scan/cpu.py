"""The selective scan in plain PyTorch as a custom op: deterministic, on any device, without a compiler.

Optimised for the CPU; on other devices it is correct but launches many small kernels. This module handles dtypes,
softplus, skip, gate and the registration with PyTorch; the recurrence is in `recurrence`. If PyTorch has two or three
threads, the recurrence uses one (see `zigma_pl.ops.threads`).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zigma_pl.ops.rows import compute_dtype
from zigma_pl.ops.selective_scan.recurrence import num_tiles, recur, recur_backward, tiling


def run(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    skip: Tensor | None = None,
    gate: Tensor | None = None,
    delta_bias: Tensor | None = None,
    visit_order: Tensor | None = None,
) -> Tensor:
    """Run the scan with the arguments of `zigma_pl.ops.selective_scan.selective_scan`, in float64 for float64 u."""
    inputs = (u, delta, A, B, C, skip, gate, delta_bias)
    differentiated = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    return scan_forward(*inputs, visit_order, differentiated)[0]


def _positive(delta: Tensor, delta_bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return delta.to(dtype) if delta_bias is None else F.softplus(delta.to(dtype) + delta_bias.to(dtype))


@torch.library.custom_op("zigma_pl::selective_scan_cpu", mutates_args=())
def scan_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    skip: Tensor | None,
    gate: Tensor | None,
    delta_bias: Tensor | None,
    visit_order: Tensor | None,
    differentiated: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, the output before the gate (empty without gate), and the state at the start of each tile.

    The last two are for the backward pass and are empty unless `differentiated`.
    """
    dtype = compute_dtype(u)
    states = u.new_empty(_states_shape(u, A, differentiated), dtype=dtype)
    raster_u = u.to(dtype)
    positive = _positive(delta, delta_bias, dtype)
    y = recur(raster_u, positive, A.to(dtype), B.to(dtype), C.to(dtype), visit_order, states)
    if skip is not None:
        y.addcmul_(raster_u, skip.to(dtype))
    out = y if gate is None else y * F.silu(gate.to(dtype))
    keep_ungated = differentiated and gate is not None
    return out.to(u.dtype), y if keep_ungated else y.new_empty(0), states


def _states_shape(u: Tensor, A: Tensor, differentiated: bool) -> tuple[int, ...]:
    num_rows, num_steps, num_channels = u.shape
    if not differentiated:
        return (0, num_rows, A.shape[1], num_channels)
    _, steps = tiling(num_rows, num_steps, num_channels, A.shape[1])
    return (num_tiles(num_steps, steps), num_rows, A.shape[1], num_channels)


@scan_forward.register_fake
def _(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    skip: Tensor | None,
    gate: Tensor | None,
    delta_bias: Tensor | None,
    visit_order: Tensor | None,
    differentiated: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(u)
    ungated = u.new_empty(u.shape if differentiated and gate is not None else (0,), dtype=dtype)
    return u.new_empty(u.shape), ungated, u.new_empty(_states_shape(u, A, differentiated), dtype=dtype)


@torch.library.custom_op("zigma_pl::selective_scan_cpu_backward", mutates_args=())
def scan_backward(
    dout: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    skip: Tensor | None,
    gate: Tensor | None,
    delta_bias: Tensor | None,
    visit_order: Tensor | None,
    ungated: Tensor,
    states: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, delta, A, B, C, skip, gate, delta_bias, empty for absent arguments."""
    dtype = compute_dtype(u)
    dy, dgate = dout.to(dtype), None
    if gate is not None:
        raster_gate = gate.to(dtype)
        dgate = torch.ops.aten.silu_backward(dy * ungated, raster_gate)
        dy = dy * F.silu(raster_gate)
    raster_u, positive = u.to(dtype), _positive(delta, delta_bias, dtype)
    du, ddelta, dA, dB, dC = recur_backward(
        dy, raster_u, positive, A.to(dtype), B.to(dtype), C.to(dtype), visit_order, states
    )
    dskip = dbias = None
    if skip is not None:
        du.addcmul_(dy, skip.to(dtype))
        dskip = (dy * raster_u).sum((0, 1))
    if delta_bias is not None:
        # d softplus(v) / dv = sigmoid(v) = 1 - exp(-softplus(v)), computed by expm1 for precision at small values.
        ddelta.mul_(positive.neg_().expm1_().neg_())
        dbias = ddelta.sum((0, 1))
    gradients = (du, ddelta, dA, dB, dC, dskip, dgate, dbias)
    return _like_inputs(gradients, (u, delta, A, B, C, skip, gate, delta_bias))


def _like_inputs(gradients: tuple[Tensor | None, ...], inputs: tuple[Tensor | None, ...]) -> Any:
    """Return contiguous gradients in the inputs' dtypes, with an empty tensor for None."""
    like = inputs[0]
    assert like is not None
    return tuple(
        like.new_empty(0) if gradient is None or t is None else gradient.to(t.dtype).contiguous()
        for gradient, t in zip(gradients, inputs, strict=True)
    )


@scan_backward.register_fake
def _(
    dout: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    skip: Tensor | None,
    gate: Tensor | None,
    delta_bias: Tensor | None,
    visit_order: Tensor | None,
    ungated: Tensor,
    states: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = (u, delta, A, B, C, skip, gate, delta_bias)
    return _like_inputs(tuple(None if t is None else t.new_empty(t.shape) for t in inputs), inputs)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, ungated, states = output
    ctx.mark_non_differentiable(ungated, states)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:9], ungated, states)


def _backward(ctx: Any, dout: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if dout is None:  # the output was not used
        return (None,) * 10
    saved = ctx.saved_tensors  # only once: under activation checkpointing a second access is an error
    gradients = scan_backward(dout, *saved)
    present = [t is not None for t in saved[:8]]
    return *(gradient if there else None for gradient, there in zip(gradients, present, strict=True)), None, None


scan_forward.register_autograd(_backward, setup_context=_setup_context)
