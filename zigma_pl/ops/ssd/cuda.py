"""CUDA backend of SSD: hand-written kernels for the matrix units, as custom ops with autograd."""

from typing import Any

import torch
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.ops import nvrtc
from zigma_pl.ops.ssd import launch
from zigma_pl.ops.ssd.launch import Call
from zigma_pl.ops.ssd.terms import copy_ordered, ordered


def available() -> tuple[bool, str]:
    """Return whether the kernels can run here, with the reason if not."""
    return nvrtc.available()


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
    deterministic: bool = False,
) -> Tensor:
    """Run SSD with the arguments of `zigma_pl.ops.ssd.ssd`, with the sizes that `launch.check_sizes` allows."""
    if x.dtype not in nvrtc.ROW_KINDS:
        raise UserError(f"ssd: backend 'cuda' has no {x.dtype}; use backend 'cpu', which runs on CUDA too")
    launch.check_sizes(B.shape[3], x.shape[3])
    inputs = (x, dt, A, B, C, skip, gate, dt_bias)
    differentiated = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    if not differentiated and nvrtc.runs_eagerly(x):
        return forward(*inputs, visit_order, False)[0].to(x.dtype)
    return ssd_forward(*inputs, visit_order, differentiated, deterministic)[0]


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    skip: Tensor | None,
    gate: Tensor | None,
    dt_bias: Tensor | None,
    visit_order: Tensor | None,
    keep_states: bool,
    log_A: bool = False,
    mean_squares: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the output, (B, L, H, P), and the states for `backward`, empty unless `keep_states`; without autograd.

    With `log_A`, A contains log(-A), the parameter that models learn. `mean_squares`, from `new_mean_squares`, receives
    parts of the mean of the squared output over (H, P), which are to be added.
    """
    call = Call(x, dt, A, B, C, skip, gate, dt_bias, visit_order, log_A=log_A)
    out = torch.empty(x.shape, dtype=call.dtype, device=x.device)
    states = new_states(x, B, call.dtype, keep_states)
    results = {"out": out, "states": states} | ({} if mean_squares is None else {"squares": mean_squares})
    launch.launch(call, results, backward=False, option=keep_states)
    return out, states


def new_mean_squares(x: Tensor, B: Tensor, dtype: torch.dtype) -> Tensor:
    """Allocate the parts of the mean squares of rows, (B, L, K) float32, one for each block along the heads."""
    slices = launch.layout_of(B.shape[3], x.shape[3], dtype, x.get_device()).slices
    return x.new_empty((*x.shape[:2], x.shape[2] * slices), dtype=torch.float32)


def new_states(x: Tensor, B: Tensor, dtype: torch.dtype, keep_states: bool) -> Tensor:
    """Allocate the states at the start of chunks."""
    layout = launch.layout_of(B.shape[3], x.shape[3], dtype, x.get_device())
    chunks = layout.num_chunks(x.shape[1]) if keep_states else 0
    shape = (x.shape[0], x.shape[2] * layout.slices, chunks, layout.states, layout.slice)
    return x.new_empty(shape, dtype=launch.item_dtype(dtype))


def backward(
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
    states: Tensor,
    deterministic: bool,
    dx: Tensor | None = None,
    dgate: Tensor | None = None,
    ddt: Tensor | None = None,
    dBC: Tensor | None = None,
    log_A: bool = False,
    out: Tensor | None = None,
    dmean_squares: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the gradients without autograd, in the kernels' dtypes; with `log_A`, A and its gradient are log(-A)'s.

    Outputs can be given for `dx`, `dgate` and `ddt`, such as columns of the gradient of a projection: the last axes
    (H, P) or (H,) contiguous, samples adjacent, and rows of dx and dgate at multiples of 16 bytes. `dBC` can be rows in
    any dtype, (B, L, 2 G N).

    Args:
        dout: gradient of the output.
        states: from `forward`, whose arguments the others are.
        deterministic: compute bit-identical gradients on every run.
        out, dmean_squares: the output and the gradients of its mean squares, if they were used.

    Returns:
        dx: (B, L, H, P) in the rows' dtype.
        dgate: as dx; absent without gate.
        ddt: (B, L, H) in dt's dtype.
        dBC: (B, L, 2, G, N) float32, gradients of B, then of C, where N may be several axes; absent if it was given.
        sums: (H, 3) float32, gradients of A, skip and dt_bias.
    """
    call = Call(x, dt, A, B, C, skip, gate, dt_bias, visit_order, dout, log_A)
    layout, parts = call.layout, call.parts
    num_pieces = launch.num_pieces_of(call, backward=True)
    adding = parts > 1 and not deterministic

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    def rows() -> Tensor:
        return torch.empty(x.shape, dtype=call.dtype, device=x.device)

    results = {"dx": rows() if dx is None else dx}
    if gate is not None:
        results["dgate"] = rows() if dgate is None else dgate
    if ddt is None:
        ddt = torch.empty(dt.shape, dtype=call.dt.dtype, device=x.device)
    results["ddt"] = ddt
    if layout.slices > 1:
        results["ddt"] = new(layout.slices, *dt.shape)
    if adding:  # one tensor, which one kernel fills with zeros
        terms, sums = new(2 * B.numel() + 3 * x.shape[2]).zero_().split([2 * B.numel(), 3 * x.shape[2]])
        results |= {"dBC": terms.view(1, *x.shape[:2], 2, *B.shape[2:]), "sums": sums.view(-1, 3)}
    else:
        results["dBC"] = new(parts, *x.shape[:2], 2, *B.shape[2:])
        results["sums"] = new(len(x), num_pieces, x.shape[2], layout.slices, 3)
    inputs = {"states": states}
    if dmean_squares is not None:
        assert out is not None
        inputs |= {"out": out, "squares": dmean_squares}
    launch.launch(call, results | inputs, backward=True, option=adding)
    if layout.slices > 1:
        results["ddt"] = ddt.copy_(results["ddt"].sum(0))
    terms = results.pop("dBC")
    terms = terms[0] if len(terms) == 1 else terms.sum(0)
    is_permuted = adding and B.shape[3] % 16 == 0
    if dBC is None:
        results["dBC"] = ordered(terms) if is_permuted else terms
    elif is_permuted:
        copy_ordered(terms, dBC)
    else:
        dBC.copy_(terms.flatten(2))
    if not adding:
        results["sums"] = results["sums"].sum((0, 1, 3))
    return results


# ------------------------------------------------------------------------------------------------------- custom ops
@torch.library.custom_op("zigma_pl::ssd_cuda", mutates_args=())
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
    deterministic: bool,
) -> tuple[Tensor, Tensor]:
    """Return the output and the states for the backward pass (empty unless `differentiated`)."""
    out, states = forward(x, dt, A, B, C, skip, gate, dt_bias, visit_order, differentiated)
    return out.to(x.dtype), states


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
    deterministic: bool,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), new_states(x, B, launch.row_dtype(x, B, C, gate), differentiated)


@torch.library.custom_op("zigma_pl::ssd_cuda_backward", mutates_args=())
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
    states: Tensor,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, dt, A, B, C, skip, gate, dt_bias, empty for absent arguments."""
    found = backward(dout, x, dt, A, B, C, skip, gate, dt_bias, visit_order, states, deterministic)
    dB, dC = found["dBC"].unbind(2)
    dA, dskip, dbias = found["sums"].unbind(1)
    return (
        found["dx"].to(x.dtype),
        found["ddt"].to(dt.dtype),
        own(dA, A),
        own(dB, B),
        own(dC, C),
        x.new_empty(0) if skip is None else own(dskip, skip),
        x.new_empty(0) if gate is None else found["dgate"].to(gate.dtype),
        x.new_empty(0) if dt_bias is None else own(dbias, dt_bias),
    )


def own(gradient: Tensor, of: Tensor) -> Tensor:
    """Copy a gradient to new memory in the dtype and shape of its argument."""
    return gradient.to(of.dtype, memory_format=torch.contiguous_format, copy=True).view(of.shape)


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
    states: Tensor,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = (x, dt, A, B, C, skip, gate, dt_bias)
    gradients = [x.new_empty(0) if t is None else t.new_empty(t.shape) for t in inputs]
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
    gradients = ssd_backward(dout, *saved, ctx.deterministic)
    present = [t is not None for t in saved[:8]]
    return *(g if there else None for g, there in zip(gradients, present, strict=True)), None, None, None


ssd_forward.register_autograd(_backward, setup_context=_setup_context)
