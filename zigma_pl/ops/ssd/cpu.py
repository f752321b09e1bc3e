"""SSD in plain PyTorch as a custom op: deterministic, on any device, without a compiler.

Optimised for the CPU. This module handles dtypes, softplus, skip, gate and the registration with PyTorch; the matrix
products over chunks are in `chunks`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zigma_pl.core.autocast import without_autocast
from zigma_pl.ops.rows import compute_dtype, inverse_order
from zigma_pl.ops.ssd.chunks import Rows, num_chunks, scan, scan_backward
from zigma_pl.ops.ssd.reference import arrange


def run(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    skip: Tensor | None = None,
    gate: Tensor | None = None,
    dt_bias: Tensor | None = None,
    visit_order: Tensor | None = None,
) -> Tensor:
    """Run the scan with the arguments of `zigma_pl.ops.ssd.ssd`, in float64 for float64 x."""
    inputs = (x, dt, A, B, C, skip, gate, dt_bias)
    differentiated = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    if visit_order is None or visit_order.ndim == 1:
        return ssd_forward(*inputs, visit_order, differentiated)[0]
    x, dt, B, C = (arrange(rows, visit_order) for rows in (x, dt, B, C))
    gate = None if gate is None else arrange(gate, visit_order)
    out = ssd_forward(x, dt, A, B, C, skip, gate, dt_bias, None, differentiated)[0]
    return arrange(out, inverse_order(visit_order))


def _rows(
    x: Tensor, dt: Tensor, B: Tensor, C: Tensor, dt_bias: Tensor | None, visit_order: Tensor | None
) -> tuple[Rows, Tensor | None, Tensor | None]:
    """Return the arguments of the recurrence, the order and its inverse."""
    dtype = compute_dtype(x)
    step = dt.to(dtype) if dt_bias is None else F.softplus(dt.to(dtype) + dt_bias.to(dtype))
    return Rows(x, step, B, C), visit_order, None if visit_order is None else inverse_order(visit_order)


@torch.library.custom_op("zigma_pl::ssd_cpu", mutates_args=())
def ssd_forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    skip: Tensor | None,
    gate: Tensor | None,
    dt_bias: Tensor | None,
    visit_order: Tensor | None,
    differentiated: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, the output before the gate (empty without gate), and the state before each chunk.

    The last two are for the backward pass and are empty unless `differentiated`; there are no states for one chunk.
    """
    dtype = compute_dtype(x)
    states = x.new_empty(_states_shape(x, B, differentiated), dtype=dtype)
    rows, order, inverse = _rows(x, dt, B, C, dt_bias, visit_order)
    with without_autocast(x.device):
        y = scan(rows, A.to(dtype), order, inverse, states)
    if skip is not None:
        y.addcmul_(x.to(dtype), skip.to(dtype).unsqueeze(-1))
    out = y if gate is None else y * F.silu(gate.to(dtype))
    keep_ungated = differentiated and gate is not None
    return out.to(x.dtype), y if keep_ungated else y.new_empty(0), states


def _states_shape(x: Tensor, B: Tensor, differentiated: bool) -> tuple[int, ...]:
    batch_size, num_tokens, num_heads, head_dim = x.shape
    count = num_chunks(num_tokens)
    return (batch_size if differentiated and count > 1 else 0, num_heads, count, B.shape[-1], head_dim)


@ssd_forward.register_fake
def _(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    skip: Tensor | None,
    gate: Tensor | None,
    dt_bias: Tensor | None,
    visit_order: Tensor | None,
    differentiated: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(x)
    ungated = x.new_empty(x.shape if differentiated and gate is not None else (0,), dtype=dtype)
    return x.new_empty(x.shape), ungated, x.new_empty(_states_shape(x, B, differentiated), dtype=dtype)


@torch.library.custom_op("zigma_pl::ssd_cpu_backward", mutates_args=())
def ssd_backward(
    dout: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    skip: Tensor | None,
    gate: Tensor | None,
    dt_bias: Tensor | None,
    visit_order: Tensor | None,
    ungated: Tensor,
    states: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, dt, A, B, C, skip, gate, dt_bias, empty for absent arguments."""
    dtype = compute_dtype(x)
    dy, dgate = dout.to(dtype), None
    if gate is not None:
        raster_gate = gate.to(dtype)
        dgate = torch.ops.aten.silu_backward(dy * ungated, raster_gate)
        dy = dy * F.silu(raster_gate)
    rows, order, inverse = _rows(x, dt, B, C, dt_bias, visit_order)
    with without_autocast(x.device):
        dx, ddt, dA, dB, dC = scan_backward(dy, rows, A.to(dtype), order, inverse, states)
    dskip = dbias = None
    if skip is not None:
        dx.addcmul_(dy, skip.to(dtype).unsqueeze(-1))
        dskip = (dy * x.to(dtype)).sum((0, 1, 3))
    if dt_bias is not None:
        # d softplus(v) / dv = sigmoid(v) = 1 - exp(-softplus(v)), computed by expm1 for precision at small values.
        ddt.mul_(rows.step.neg_().expm1_().neg_())
        dbias = ddt.sum((0, 1))
    gradients = (dx, ddt, dA, dB, dC, dskip, dgate, dbias)
    return _like_inputs(gradients, (x, dt, A, B, C, skip, gate, dt_bias))


def _like_inputs(gradients: tuple[Tensor | None, ...], inputs: tuple[Tensor | None, ...]) -> Any:
    """Return contiguous gradients in the inputs' dtypes, with an empty tensor for None."""
    like = inputs[0]
    assert like is not None
    return tuple(
        like.new_empty(0) if gradient is None or t is None else gradient.to(t.dtype).contiguous()
        for gradient, t in zip(gradients, inputs, strict=True)
    )


@ssd_backward.register_fake
def _(
    dout: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    skip: Tensor | None,
    gate: Tensor | None,
    dt_bias: Tensor | None,
    visit_order: Tensor | None,
    ungated: Tensor,
    states: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = (x, dt, A, B, C, skip, gate, dt_bias)
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
    gradients = ssd_backward(dout, *saved)
    present = [t is not None for t in saved[:8]]
    return *(gradient if there else None for gradient, there in zip(gradients, present, strict=True)), None, None


ssd_forward.register_autograd(_backward, setup_context=_setup_context)
