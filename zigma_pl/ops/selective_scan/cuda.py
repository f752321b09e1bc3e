"""The selective scan on NVIDIA GPUs: CUDA C++ compiled at run time, with rows addressed through the visit order.

Nothing is gathered, transposed or copied; inputs may be column slices of a projection. Rows are float32, bfloat16 or
float16, the state and sums are float32. The forward pass stores the state at regular intervals of rows (float32, or
bfloat16 for 16-bit rows; see `direct.KEEP_EVERY`), and the backward pass recomputes the states in between. With few
batch elements, long sequences are split into chunks that run in parallel.
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
    """Return whether the kernels can run here, with the reason if not."""
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
    """Run the scan with the arguments of `selective_scan`, but without float64 and with at most 64 states."""
    if u.dtype not in ROW_KINDS:
        raise UserError(f"selective_scan: backend 'cuda' has no {u.dtype}; use backend 'cpu', which runs on CUDA too")
    if A.shape[1] > MAX_STATES:
        raise UserError(
            f"selective_scan: backend 'cuda' supports up to {MAX_STATES} states, got {A.shape[1]}; use backend 'cpu'"
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
    """Return the output and the stored states for the backward pass (empty unless `differentiated`)."""
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
    """Return the gradients of u, delta, A, B, C, skip, gate, delta_bias, empty for absent arguments."""
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
    """Copy a gradient to new memory in the dtype of its argument."""
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
    saved = ctx.saved_tensors  # only once: under activation checkpointing a second access is an error
    gradients = scan_backward(dout, *saved, ctx.deterministic)
    present = [t is not None for t in saved[:8]]
    return *(g if there else None for g, there in zip(gradients, present, strict=True)), None, None, None


scan_forward.register_autograd(_backward, setup_context=_setup_context)
