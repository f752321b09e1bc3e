"""The convolution and the scan of Mamba-2 as one function on NVIDIA GPUs, from the output of the input projection.

As separate functions, they would concatenate their gradients, which copies each once or twice: those of x, B and C for
the convolution, and those of the gate, the convolution's input and the step sizes for the projection. Here the kernels
write them in place, except those of B and C, which are copied once. In compiled code, each part of the projection would
also be copied before the custom op that takes it.

Axes: B batch, L tokens, E inner width, H heads, P width of a head, G groups, N state.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zigma_pl.ops import causal_conv1d_cuda as convolution
from zigma_pl.ops.nvrtc import ROW_KINDS, is_available, runs_eagerly
from zigma_pl.ops.ssd import cuda, launch
from zigma_pl.ops.ssd.sizes import Sizes


class Inputs(NamedTuple):
    """Tensors that `convolve_and_scan` takes."""

    projected: Tensor
    conv_weight: Tensor
    conv_bias: Tensor
    A_log: Tensor
    skip: Tensor
    dt_bias: Tensor
    visit_order: Tensor | None


Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # of all inputs except the order


def runs_fused(projected: Tensor, conv_weight: Tensor, visit_order: Tensor | None, sizes: Sizes, backend: str) -> bool:
    """Return whether `convolve_and_scan` supports these arguments."""
    return (
        backend in ("auto", "cuda")
        and projected.is_cuda
        and projected.dtype in ROW_KINDS
        and projected.is_contiguous()
        and sizes.are_aligned(projected.element_size())
        and launch.supports(sizes.num_states, sizes.head_dim)
        and conv_weight.shape[1] <= convolution.MAX_TAPS
        and (visit_order is None or visit_order.ndim == 1)
        and is_available()
    )


def convolve_and_scan(
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    A_log: Tensor,
    skip: Tensor,
    dt_bias: Tensor,
    visit_order: Tensor | None,
    sizes: Sizes,
    deterministic: bool,
    squared: bool = False,
) -> tuple[Tensor, Tensor]:
    """Convolve x, B and C along an order, with silu, scan, and multiply by silu(gate), as in Mamba-2.

    Args:
        projected: (B, L, E + (E + 2 G N) + H): gate; x, B and C; step sizes before bias and softplus.
        conv_weight: (E + 2 G N, K).
        conv_bias: (E + 2 G N,).
        A_log: (H,), log(-A).
        skip, dt_bias: (H,), see `zigma_pl.ops.ssd.ssd`.
        visit_order: (L,) int32 or int64, None for raster order.
        sizes: sizes of the scan.
        deterministic: compute bit-identical gradients on every run.
        squared: also return mean squares.

    Returns: rows (B, L, E), in raster order, and for each of them the mean square as K parts, which are to be added:
        (B, L, K) float32, empty unless `squared`.
    """
    inputs = Inputs(projected, conv_weight, conv_bias, A_log, skip, dt_bias, visit_order)
    differentiated = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    if not runs_eagerly(projected):
        return forward_op(*inputs, sizes.numbers, differentiated, deterministic, squared)[:2]
    if not differentiated:
        return _forward(inputs, sizes, False, squared)[:2]
    return _ConvolveAndScan.apply(*inputs, sizes, deterministic, squared)


Forward = tuple[Tensor, Tensor, Tensor, Tensor]


def _forward(inputs: Inputs, sizes: Sizes, keep_states: bool, squared: bool) -> Forward:
    """Return the output and its mean squares, empty unless `squared`; the convolved rows; and the states.

    The last two are for the backward pass; states are empty unless `keep_states`.
    """
    projected, conv_weight, conv_bias, A_log, skip, dt_bias, visit_order = inputs
    gate, rows, dt = projected.split(sizes.parts, -1)
    convolved = convolution.convolve(rows, conv_weight, conv_bias, visit_order, True)
    x, B, C = sizes.split(convolved)
    arguments = (x, dt, A_log, B, C, skip, sizes.as_heads(gate), dt_bias, visit_order)
    squares = cuda.new_mean_squares(x, B, x.dtype) if squared else None
    y, states = cuda.forward(*arguments, keep_states, log_A=True, mean_squares=squares)
    return y.flatten(2), y.new_empty(0) if squares is None else squares, convolved, states


def _backward(
    dy: Tensor | None,
    dsquares: Tensor | None,
    inputs: Inputs,
    convolved: Tensor,
    states: Tensor,
    y: Tensor | None,
    sizes: Sizes,
    deterministic: bool,
) -> Gradients:
    """Return the gradients, those of parameters in float32 and in part in shared memory.

    dy, dsquares: gradients of the output and of its mean squares, None if they were not used.
    inputs: those of the forward pass.
    convolved, states, y: from the forward pass; y may be None without mean squares.
    """
    if dy is None:
        assert y is not None
        dy = torch.zeros_like(y)
    projected, conv_weight, conv_bias, A_log, skip, dt_bias, visit_order = inputs
    gate, rows, dt = projected.split(sizes.parts, -1)
    dprojected, dconvolved = torch.empty_like(projected), torch.empty_like(convolved)
    dgate, drows, ddt = dprojected.split(sizes.parts, -1)
    x, B, C = sizes.split(convolved)
    found = cuda.backward(
        *(sizes.as_heads(dy), x, dt, A_log, B, C, skip, sizes.as_heads(gate), dt_bias, visit_order, states),
        deterministic,
        dx=sizes.split(dconvolved)[0],
        dgate=sizes.as_heads(dgate),
        ddt=ddt,
        dBC=dconvolved[..., sizes.num_heads * sizes.head_dim :],
        log_A=True,
        out=y,
        dmean_squares=dsquares,
    )
    del convolved, x, B, C
    _, dweight, dbias = convolution.convolve_backward(
        dconvolved, rows, conv_weight, conv_bias, visit_order, True, dx=drows
    )
    dA_log, dskip, ddt_bias = found["sums"].unbind(1)
    return dprojected, dweight, dbias, dA_log, dskip, ddt_bias


class _ConvolveAndScan(torch.autograd.Function):
    """The two passes in eager mode, where a custom op would take about as long on the host as the launches."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *inputs, ctx.sizes, ctx.deterministic, squared = arguments
        y, squares, *kept = _forward(Inputs(*inputs), ctx.sizes, True, squared)
        if not squared:
            ctx.mark_non_differentiable(squares)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, *kept, y if squared else None)
        return y, squares

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dsquares: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, convolved, states, y = ctx.saved_tensors  # only once: with checkpointing a second access is an error
        kept = (convolved, states, y)
        gradients = _backward(dy, dsquares, Inputs(*inputs), *kept, ctx.sizes, ctx.deterministic)
        return *(g.to(t.dtype) for g, t in zip(gradients, inputs[:6], strict=True)), None, None, None, None


# ------------------------------------------------------------------------------------- custom ops, for torch.compile
@torch.library.custom_op("zigma_pl::convolve_and_scan", mutates_args=())
def forward_op(
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    A_log: Tensor,
    skip: Tensor,
    dt_bias: Tensor,
    visit_order: Tensor | None,
    sizes: list[int],
    differentiated: bool,
    deterministic: bool,
    squared: bool,
) -> Forward:
    """Return the result of `_forward`, with empty tensors for the backward pass unless `differentiated`."""
    inputs = Inputs(projected, conv_weight, conv_bias, A_log, skip, dt_bias, visit_order)
    y, squares, convolved, states = _forward(inputs, Sizes(*sizes), differentiated, squared)
    return y, squares, convolved if differentiated else y.new_empty(0), states


@forward_op.register_fake
def _(
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    A_log: Tensor,
    skip: Tensor,
    dt_bias: Tensor,
    visit_order: Tensor | None,
    sizes: list[int],
    differentiated: bool,
    deterministic: bool,
    squared: bool,
) -> Forward:
    given = Sizes(*sizes)
    inner, num_convolved, _ = given.parts
    y = projected.new_empty(*projected.shape[:2], inner)
    convolved = projected.new_empty(*projected.shape[:2], num_convolved)
    x, B, _ = given.split(convolved)
    squares = cuda.new_mean_squares(x, B, x.dtype) if squared else y.new_empty(0)
    states = cuda.new_states(x, B, projected.dtype, differentiated)
    return y, squares, convolved if differentiated else projected.new_empty(0), states


@torch.library.custom_op("zigma_pl::convolve_and_scan_backward", mutates_args=())
def backward_op(
    dy: Tensor | None,
    dsquares: Tensor | None,
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    A_log: Tensor,
    skip: Tensor,
    dt_bias: Tensor,
    visit_order: Tensor | None,
    convolved: Tensor,
    states: Tensor,
    y: Tensor | None,
    sizes: list[int],
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of all inputs of the forward pass except the order."""
    inputs = Inputs(projected, conv_weight, conv_bias, A_log, skip, dt_bias, visit_order)
    kept = (convolved, states, y)
    dprojected, *gradients = _backward(dy, dsquares, inputs, *kept, Sizes(*sizes), deterministic)
    # Gradients of parameters share memory, which those of a custom op must not.
    rest = (cuda.own(gradient, of) for gradient, of in zip(gradients, inputs[1:6], strict=True))
    return dprojected, *rest  # type: ignore[return-value]


@backward_op.register_fake
def _(
    dy: Tensor | None,
    dsquares: Tensor | None,
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    A_log: Tensor,
    skip: Tensor,
    dt_bias: Tensor,
    visit_order: Tensor | None,
    convolved: Tensor,
    states: Tensor,
    y: Tensor | None,
    sizes: list[int],
    deterministic: bool,
) -> Gradients:
    inputs = (projected, conv_weight, conv_bias, A_log, skip, dt_bias)
    return tuple(t.new_empty(t.shape) for t in inputs)  # type: ignore[return-value]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Forward) -> None:
    *tensors, ctx.sizes, _, ctx.deterministic, squared = inputs
    y, squares, *kept = output
    ctx.mark_non_differentiable(*kept, *(() if squared else (squares,)))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *kept, y if squared else None)


def _op_backward(ctx: Any, dy: Tensor | None, dsquares: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if dy is None and dsquares is None:  # the output was not used
        return (None,) * 11
    gradients = backward_op(dy, dsquares, *ctx.saved_tensors, ctx.sizes, ctx.deterministic)
    return *gradients, None, None, None, None, None


forward_op.register_autograd(_op_backward, setup_context=_setup_context)
