"""The selective scan on NVIDIA GPUs: CUDA C++ compiled at run time, rows read and written through the visit order.

Nothing is gathered, transposed or copied: projections may be passed as the column slices that they are. float32,
bfloat16 and float16 rows, float32 state and sums. The forward pass keeps the states before every 8th row (bfloat16; for
float32 rows before every 32nd, float32); the backward pass recomputes the rest. Long paths of few batch rows are cut
into chunks that run side by side.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from zigma_pl.errors import UserError
from zigma_pl.ops import nvrtc
from zigma_pl.ops.selective_scan.launch import ROW_KINDS, Call, chunks, launch, row_dtype
from zigma_pl.ops.selective_scan.layout import MAX_STATES, layout_for


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
    call = Call(u, delta, A, B, C, skip, gate, delta_bias, visit_order)
    out = torch.empty(u.shape, dtype=call.dtype, device=u.device)
    states = _new_states(u, A, call.dtype, differentiated)
    launch(call, {"out": out, "states": states if differentiated else None}, chunks(call, backward=False))
    return out.to(u.dtype), states


def _new_states(u: Tensor, A: Tensor, dtype: torch.dtype, differentiated: bool) -> Tensor:
    """Returns memory for the states that backward starts from, in the dtype and at the rows that tiles.cu says."""
    layout = layout_for(A.shape[1])
    kept = layout.num_tiles(u.shape[1]) * layout.tile_kept(dtype) if differentiated else 0
    shape = (u.shape[0], kept, u.shape[2], layout.states)
    return u.new_empty(shape, dtype=torch.float32 if dtype == torch.float32 else torch.bfloat16)


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
    return u.new_empty(u.shape), _new_states(u, A, dtype, differentiated)


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
    call = Call(u, delta, A, B, C, skip, gate, delta_bias, visit_order, dout)
    num_rows, num_tokens, num_channels, num_states = call.shape
    layout = layout_for(num_states)
    cut = chunks(call, backward=True)
    parts = num_rows * cut[1]
    term_blocks = -(-num_channels // layout.channels) if deterministic else 1
    new, new_rows = call.A.new_empty, functools.partial(torch.empty, u.shape, dtype=call.dtype, device=u.device)
    dBC = (new if deterministic else call.A.new_zeros)(term_blocks, num_rows, num_tokens, 2, num_states)
    dA, dskip, dbias = new(parts, num_channels, num_states), new(parts, num_channels), new(parts, num_channels)
    du, ddelta, dgate = new_rows(), new_rows(), None if gate is None else new_rows()
    outputs = {"du": du, "ddelta": ddelta, "dgate": dgate, "states": states, "dBC": dBC}
    launch(call, {**outputs, "dA": dA, "dskip": dskip, "dbias": dbias}, cut, backward=True, deterministic=deterministic)
    summed = dBC.sum(0) if deterministic else dBC[0]
    return (
        du.to(u.dtype),
        ddelta.to(delta.dtype),
        dA.sum(0).to(A.dtype),
        summed[:, :, 0].to(B.dtype, memory_format=torch.contiguous_format, copy=True),
        summed[:, :, 1].to(C.dtype, memory_format=torch.contiguous_format, copy=True),
        u.new_empty(0) if skip is None else dskip.sum(0).to(skip.dtype),
        u.new_empty(0) if dgate is None or gate is None else dgate.to(gate.dtype),
        u.new_empty(0) if delta_bias is None else dbias.sum(0).to(delta_bias.dtype),
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
