"""A complete Mamba branch as one op on NVIDIA GPUs.

residual sum, norm and modulation -> in_proj -> convolution -> x_proj, dt_proj -> scan -> out_proj.

The forward pass stores the expensive intermediate results; the backward pass recomputes the cheap ones.

Axes: B batch, L tokens, D width, E inner width, N state.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zigma_pl.ops import norms
from zigma_pl.ops.causal_conv1d_cuda import MAX_TAPS
from zigma_pl.ops.mamba_mixer_cuda import (
    KEEP_EVERY,
    CastWeights,
    Kept,
    MixerWeights,
    run_backward,
    run_forward,
    shape_of_sequences,
)
from zigma_pl.ops.norms_cuda import Inverses
from zigma_pl.ops.selective_scan import direct
from zigma_pl.ops.selective_scan.layout import MAX_STATES

__all__ = ["ActivationMemory", "MixerWeights", "add_norm_mix", "runs_fused"]

ActivationMemory = Literal["lean", "fast"]


def runs_fused(x: Tensor, shift: Tensor, weights: MixerWeights, scan_backend: str) -> bool:
    """Return whether `add_norm_mix` supports these arguments."""
    return (
        norms.runs_fused(x, shift)
        and scan_backend in ("auto", "cuda")
        and weights.A_log.shape[1] <= MAX_STATES
        and weights.conv_weight.shape[1] <= MAX_TAPS
    )


def add_norm_mix(
    x: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    norm_weight: Tensor,
    shift: Tensor,
    scale: Tensor,
    weights: MixerWeights,
    visit_order: Tensor | None,
    *,
    epsilon: float,
    activation_memory: ActivationMemory,
    deterministic: bool,
    branch_inverse: Tensor | None = None,
    out_inverse: Tensor | None = None,
    length: int = 0,
) -> tuple[Tensor, Tensor]:
    """Add a branch to the residual stream, and mix the normalised and modulated sum along an order; CUDA only.

    Args:
        x, branch, gate, shift, scale, epsilon, branch_inverse: see `norms.add_norm_modulate`.
        norm_weight: (D,), weight of the RMSNorm.
        weights: weights of the mixer.
        visit_order: (L,) int32 or int64, None for raster order; the order of one sequence if there are several.
        activation_memory: how much is stored for the backward pass. "lean": 3 D + R + 2 N numbers per token in the
            rows' dtype, including the output, and states of the scan. "fast": 4 E more numbers and four times as many
            states, so that in_proj, the convolution and the step sizes are not recomputed.
        deterministic: compute bit-identical gradients on every run.
        out_inverse: (L,) integers, index of the row of each token in the next branch; None for raster order.
        length: tokens of a sequence, if the tokens of a sample are several sequences, which follow each other in the
            next branch: a divisor of L. 0 for one sequence.

    Returns: x_new = x + gate * branch, and the next branch, (B, L, D).
    """
    kept = activation_memory if torch.is_grad_enabled() else "nothing"
    inputs = (x, branch, gate, norm_weight, shift, scale)
    inverses = Inverses(None if branch is None else branch_inverse, out_inverse)
    if torch.compiler.is_compiling():
        options = (visit_order, length, epsilon, kept, deterministic)
        x_new, out, *_ = mix_forward(*inputs, *inverses, list(weights), *options)
    elif kept == "nothing":
        x_new, out, _ = run_forward(inputs, inverses, weights.cast(shift.dtype), visit_order, length, epsilon, kept)
    else:  # the host overhead of a custom op would be too large for every layer of a training step
        x_new, out = _Mix.apply(epsilon, kept, deterministic, visit_order, length, inverses, *inputs, *weights)
    return (x if branch is None else x_new), out


class _Mix(torch.autograd.Function):
    """The two passes in eager mode."""

    @staticmethod
    def forward(
        ctx: Any,
        epsilon: float,
        kept: str,
        deterministic: bool,
        visit_order: Tensor | None,
        length: int,
        inverses: Inverses,
        *tensors: Any,
    ) -> tuple[Tensor, Tensor]:
        inputs, weights = tensors[:6], MixerWeights(*tensors[6:])
        cast = weights.cast(inputs[-1].dtype)
        x_new, out, left = run_forward(inputs, inverses, cast, visit_order, length, epsilon, kept)
        ctx.options = (length, deterministic, inputs[0].dtype)
        ctx.dtypes = tuple(t if t is None else t.dtype for t in tensors)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*left, *cast, *inputs[1:], *inverses, visit_order)
        return x_new, out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx_new: Tensor | None, dout: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # only once: under activation checkpointing a second access is an error
        kept, cast = Kept(*saved[:8]), CastWeights(*saved[8:17])
        *inputs, branch_inverse, out_inverse, visit_order = saved[17:]
        inverses = Inverses(branch_inverse, out_inverse)
        if dout is None:
            dout = torch.zeros_like(kept.normalised)
        gradients, dweights = run_backward(dx_new, dout, kept, inputs, inverses, cast, visit_order, *ctx.options)
        given = (
            gradient if gradient is None or gradient.dtype == dtype else gradient.to(dtype)
            for gradient, dtype in zip((*gradients, *dweights), ctx.dtypes, strict=True)
        )
        return None, None, None, None, None, None, *given


# ------------------------------------------------------------------------------------- custom ops, for torch.compile
OpResults = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("zigma_pl::add_norm_mix", mutates_args=())
def mix_forward(
    x: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    norm_weight: Tensor,
    shift: Tensor,
    scale: Tensor,
    branch_inverse: Tensor | None,
    out_inverse: Tensor | None,
    weights: list[Tensor],
    visit_order: Tensor | None,
    length: int,
    epsilon: float,
    kept: str,
    deterministic: bool,
) -> OpResults:
    """Return x_new (empty without a branch), the next branch, and the fields of a `Kept`."""
    inputs, cast = (x, branch, gate, norm_weight, shift, scale), MixerWeights(*weights).cast(shift.dtype)
    inverses = Inverses(branch_inverse, out_inverse)
    x_new, out, left = run_forward(inputs, inverses, cast, visit_order, length, epsilon, kept)
    # A custom op must not return the same tensor twice.
    x_new, out, *rest = (t if t.numel() else t.clone() for t in (x_new, out, *left))
    return x_new, out, *rest  # type: ignore[return-value]


@mix_forward.register_fake
def _(
    x: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    norm_weight: Tensor,
    shift: Tensor,
    scale: Tensor,
    branch_inverse: Tensor | None,
    out_inverse: Tensor | None,
    weights: list[Tensor],
    visit_order: Tensor | None,
    length: int,
    epsilon: float,
    kept: str,
    deterministic: bool,
) -> OpResults:
    given, keep, fast = MixerWeights(*weights), kept != "nothing", kept == "fast"
    x_new, out, normalised, rstd = norms.fake_forward(x, branch is not None, shift.dtype, keep)
    inner, shape = given.out_proj.shape[1], shape_of_sequences(x.shape, length, visit_order is not None)

    def new(width: int, wanted: bool = True) -> Tensor:
        return out.new_empty((*shape, width) if wanted else (0,))

    states = direct.new_states(new(inner), given.A_log, shift.dtype, KEEP_EVERY[kept])
    rows = (out.new_empty(x.shape if keep else (0,)), new(given.x_proj.shape[0], keep))
    return x_new, out, normalised, rstd, *rows, states, *(new(n * inner, fast) for n in (2, 1, 1))  # type: ignore[return-value]


@torch.library.custom_op("zigma_pl::add_norm_mix_backward", mutates_args=())
def mix_backward(
    dx_new: Tensor | None,
    dout: Tensor,
    kept: list[Tensor],
    branch: Tensor | None,
    gate: Tensor | None,
    norm_weight: Tensor,
    shift: Tensor,
    scale: Tensor,
    branch_inverse: Tensor | None,
    out_inverse: Tensor | None,
    weights: list[Tensor],
    visit_order: Tensor | None,
    length: int,
    deterministic: bool,
    stream: torch.dtype,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradients of x, branch, gate, norm_weight, shift, scale (empty if absent), and of the weights."""
    inputs, given = (branch, gate, norm_weight, shift, scale), MixerWeights(*weights).cast(shift.dtype)
    gradients, dweights = run_backward(
        *(dx_new, dout, Kept(*kept), inputs, Inverses(branch_inverse, out_inverse), given),
        *(visit_order, length, deterministic, stream),
    )
    # The scan's gradients of A, skip and bias are views of one tensor, as are the convolution's two; a custom op must
    # not return tensors that share memory.
    shared = {"dt_bias": dweights.dt_bias, "D": dweights.D, "conv_bias": dweights.conv_bias}
    dweights = dweights._replace(**{name: gradient.clone() for name, gradient in shared.items()})
    return (
        list(norms.like_inputs(gradients, (None, *inputs))),
        [gradient.to(weight.dtype) for gradient, weight in zip(dweights, weights, strict=True)],
    )


@mix_backward.register_fake
def _(
    dx_new: Tensor | None,
    dout: Tensor,
    kept: list[Tensor],
    branch: Tensor | None,
    gate: Tensor | None,
    norm_weight: Tensor,
    shift: Tensor,
    scale: Tensor,
    branch_inverse: Tensor | None,
    out_inverse: Tensor | None,
    weights: list[Tensor],
    visit_order: Tensor | None,
    length: int,
    deterministic: bool,
    stream: torch.dtype,
) -> tuple[list[Tensor], list[Tensor]]:
    gradients = norms.fake_gradients(kept[0], branch, gate, norm_weight, shift, scale, stream)
    return list(gradients), [torch.empty_like(weight) for weight in weights]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: OpResults) -> None:
    x, *tensors, weights, visit_order, ctx.length, _, _, ctx.deterministic = inputs
    ctx.stream = x.dtype
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[2:], visit_order, *tensors, *weights)


def _op_backward(ctx: Any, dx_new: Tensor | None, dout: Tensor | None, *_: None) -> tuple[Any, ...]:
    saved, count = ctx.saved_tensors, len(Kept._fields)
    kept, visit_order, inputs = list(saved[:count]), saved[count], saved[count + 1 : count + 6]
    inverses, weights = saved[count + 6 : count + 8], list(saved[count + 8 :])
    if dout is None:
        dout = torch.zeros_like(kept[0])
    options = (visit_order, ctx.length, ctx.deterministic, ctx.stream)
    gradients, dweights = mix_backward(dx_new, dout, kept, *inputs, *inverses, weights, *options)
    present = (True, *(t is not None for t in inputs))
    given = (g if there else None for g, there in zip(gradients, present, strict=True))
    return *given, None, None, dweights, None, None, None, None, None


mix_forward.register_autograd(_op_backward, setup_context=_setup_context)
