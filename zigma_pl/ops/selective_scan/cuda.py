"""The selective scan on NVIDIA GPUs: CUDA C++ compiled at run time, rows read and written through the visit order.

Nothing is gathered, transposed or copied: projections may be passed as the column slices that they are. float32,
bfloat16 and float16 rows, float32 state and sums. The forward pass keeps the states before every 32nd row (float32; for
16-bit rows bfloat16); the backward pass recomputes the rest. Long paths of few batch rows are cut into chunks that run
side by side.
"""

from typing import Any

import torch
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.ops import nvrtc
from zigma_pl.ops.selective_scan import direct
from zigma_pl.ops.selective_scan.launch import ROW_KINDS, row_dtype
from zigma_pl.ops.selective_scan.layout import MAX_STATES


def available() -> tuple[bool, str]:
    """Returns whether the kernels can run here, and why not."""
    return nvrtc.available()


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
    deterministic: bool = False,
) -> Tensor:
    """Selective scan with the arguments of `zigma_pl.ops.selective_scan.selective_scan`; not for float64 or N > 64."""
    if u.dtype not in ROW_KINDS:
        raise UserError(f"selective_scan: backend 'cuda' has no {u.dtype}; use backend 'cpu', which runs on CUDA too")
    if A.shape[1] > MAX_STATES:
        raise UserError(
            f"selective_scan: backend 'cuda' takes at most {MAX_STATES} states, got {A.shape[1]}; use backend 'cpu'"
        )
    inputs = (u, delta, A, B, C, skip, gate, delta_bias)
    differentiated = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    if not differentiated and nvrtc.runs_eagerly(u):
        return direct.forward(*inputs, visit_order, 0)[0].to(u.dtype)
    return scan_forward(*inputs, visit_order, differentiated, deterministic)[0]


# ------------------------------------------------------------------------------------------------------- custom ops
@torch.library.custom_op("zigma_pl::selective_scan_cuda", mutates_args=())
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
    deterministic: bool,
) -> tuple[Tensor, Tensor]:
    """Returns the output and the states that backward starts from (empty unless differentiated)."""
    keep_every = direct.KEEP_EVERY if differentiated else 0
    out, states = direct.forward(u, delta, A, B, C, skip, gate, delta_bias, visit_order, keep_every)
    return out.to(u.dtype), states


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
    deterministic: bool,
) -> tuple[Tensor, Tensor]:
    dtype = row_dtype(u, delta, gate, B, C)
    return u.new_empty(u.shape), direct.new_states(u, A, dtype, direct.KEEP_EVERY if differentiated else 0)


@torch.library.custom_op("zigma_pl::selective_scan_cuda_backward", mutates_args=())
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
    states: Tensor,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients of u, delta, A, B, C, skip, gate, delta_bias; that of an absent argument is empty."""
    inputs = (u, delta, A, B, C, skip, gate, delta_bias)
    found = direct.backward(dout, *inputs, visit_order, states, deterministic=deterministic)
    return (
        found.u.to(u.dtype),
        found.delta.to(delta.dtype),
        _own(found.A, A),
        _own(found.BC[:, :, 0], B),
        _own(found.BC[:, :, 1], C),
        u.new_empty(0) if skip is None else _own(found.skip, skip),
        u.new_empty(0) if gate is None or found.gate is None else found.gate.to(gate.dtype),
        u.new_empty(0) if delta_bias is None else _own(found.delta_bias, delta_bias),
    )


def _own(gradient: Tensor, of: Tensor) -> Tensor:
    """Returns a gradient in the dtype of what it belongs to, and in memory of its own."""
    return gradient.to(of.dtype, memory_format=torch.contiguous_format, copy=True)


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
    states: Tensor,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = (u, delta, A, B, C, skip, gate, delta_bias)
    gradients = [u.new_empty(0) if t is None else t.new_empty(t.shape) for t in inputs]
    return tuple(gradients)  # type: ignore[return-value]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, _, ctx.deterministic = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx: Any, dout: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if dout is None:  # the output was not used
        return (None,) * 11
    saved = ctx.saved_tensors  # read once: under activation checkpointing a second reading is an error
    gradients = scan_backward(dout, *saved, ctx.deterministic)
    present = [t is not None for t in saved[:8]]
    return *(g if there else None for g, there in zip(gradients, present, strict=True)), None, None, None


scan_forward.register_autograd(_backward, setup_context=_setup_context)
