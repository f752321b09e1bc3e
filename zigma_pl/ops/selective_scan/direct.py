"""The CUDA scan without autograd, for callers with their own backward pass that store less than the op does."""

from typing import NamedTuple

import torch
from torch import Tensor

from zigma_pl.ops.selective_scan.launch import Call, aligned, cut_for, launch
from zigma_pl.ops.selective_scan.layout import layout_for

KEEP_EVERY = 16  # rows between stored states: 101 MB for 32,768 tokens, 1,536 channels and 16 states in bfloat16


class Gradients(NamedTuple):
    """Result of `backward`; u, delta, gate and output have the dtype of the input rows, the others are float32.

    u, delta: (B, L, E), contiguous.
    A: (E, N).
    BC: (B, L, 2, N), contiguous: gradients of B, then of C.
    skip, delta_bias: (E,), also if these arguments are None.
    gate: (B, L, E), or None without gate.
    output: (B, L, E), contiguous: the output of `forward`, or None if it was not requested.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    BC: Tensor
    skip: Tensor
    delta_bias: Tensor
    gate: Tensor | None
    output: Tensor | None


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    skip: Tensor | None,
    gate: Tensor | None,
    delta_bias: Tensor | None,
    visit_order: Tensor | None,
    keep_every: int = KEEP_EVERY,
    *,
    log_A: bool = False,
    restart_every: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return the output, (B, L, E), and the stored states for `backward`.

    Args:
        u, delta, A, B, C, skip, gate, delta_bias, visit_order: see `zigma_pl.ops.selective_scan.selective_scan`; rows
            may be slices of wider tensors.
        keep_every: rows between stored states: 8, 16 or 32, or 0 to store none. With 8 instead of 32 the backward pass
            takes an eighth less time, and the states take four times the memory. The states are
            (B, L / keep_every, E, N) with padded L and N, bfloat16 for 16-bit rows, otherwise float32.
        log_A: A contains log(-A), the parameter that models learn.
        restart_every: length of the sequences that follow each other in L, each of which starts from a zero state; 0 if
            L is one sequence. Short sequences are faster together, since the kernels process 32 rows at a time.
    """
    call = Call(u, delta, A, B, C, skip, gate, delta_bias, visit_order, log_A=log_A, restart_every=restart_every)
    out = torch.empty(u.shape, dtype=call.dtype, device=u.device)
    states = new_states(u, A, call.dtype, keep_every)
    results = {"out": out, "states": states if keep_every else None}
    launch(call, results, cut_for(call, backward=False), keep=keep_every)
    return out, states


def new_states(u: Tensor, A: Tensor, dtype: torch.dtype, keep_every: int) -> Tensor:
    """Allocate the stored states for rows of a dtype."""
    layout = layout_for(A.shape[1])
    kept = layout.num_tiles(u.shape[1]) * (layout.tile // keep_every) if keep_every else 0
    shape = (u.shape[0], kept, u.shape[2], layout.states)
    return u.new_empty(shape, dtype=torch.float32 if dtype == torch.float32 else torch.bfloat16)


def backward(
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
    *,
    log_A: bool = False,
    restart_every: int = 0,
    deterministic: bool = False,
    want_output: bool = False,
    dgate: Tensor | None = None,
) -> Gradients:
    """Return the gradients and, if requested, the output.

    Args:
        dout: gradient of the output.
        u, delta, A, B, C, skip, gate, delta_bias, visit_order: the arguments of `forward`.
        states: the states from `forward`, with keep_every > 0.
        log_A: as in `forward`; the gradient is then with respect to log(-A).
        restart_every: as in `forward`.
        deterministic: compute bit-identical gradients on every run.
        want_output: recompute and return the output as well.
        dgate: output for the gradient of the gate, such as half of the gradient of a projection: (B, L, E) with last
            stride 1, in the dtype of the rows. Like the inputs, it is faster if rows start at multiples of 16 bytes.
    """
    call = Call(u, delta, A, B, C, skip, gate, delta_bias, visit_order, dout, log_A, restart_every)
    num_rows, num_tokens, num_channels, num_states = call.shape
    layout = call.layout
    cut = cut_for(call, backward=True)
    keep = layout.tile * layout.num_tiles(num_tokens) // states.shape[1]
    if gate is not None and dgate is None:
        dgate = torch.empty(u.shape, dtype=call.dtype, device=u.device)
    call.aligned = call.aligned and (dgate is None or aligned(dgate))
    rows = [torch.empty(u.shape, dtype=call.dtype, device=u.device) for _ in range(3 if want_output else 2)]
    results: dict[str, Tensor | None] = dict(zip(("du", "ddelta", "out"), rows, strict=False))
    blocks = -(-num_channels // layout.channels) if deterministic else 1
    new = call.A.new_empty if deterministic else call.A.new_zeros
    dBC = new(blocks, num_rows, num_tokens, 2, num_states)
    parts = call.A.new_empty(num_rows * cut.num_chunks, num_channels * (num_states + 2))
    results |= {"dgate": dgate, "states": states, "dBC": dBC}
    results |= zip(("dA", "dskip", "dbias"), _split(parts, num_channels, num_states), strict=True)
    launch(call, results, cut, backward=True, keep=keep, deterministic=deterministic)
    dA, dskip, dbias = _split(parts.sum(0, keepdim=True) if len(parts) > 1 else parts, num_channels, num_states)
    dBC = dBC.sum(0) if deterministic else dBC[0]
    shape = (num_channels, num_states)
    return Gradients(
        rows[0], rows[1], dA[0].view(shape), dBC, dskip[0], dbias[0], dgate, rows[2] if want_output else None
    )


def _split(parts: Tensor, num_channels: int, num_states: int) -> tuple[Tensor, ...]:
    """Split (parts, E (N + 2)) into partial gradients of A, skip and delta_bias."""
    return parts.split([num_channels * num_states, num_channels, num_channels], 1)
