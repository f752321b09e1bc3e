"""Forward and backward pass of a complete Mamba branch on NVIDIA GPUs, without autograd; see `mamba_mixer`.

Intermediate results have the dtype of the modulation, a 16-bit dtype under autocast; parameters, their gradients, the
scan's state and all sums are float32.

Axes: B batch, L tokens, D width, E inner width, N state. Mixers process S sequences of K rows, which are (B, L) unless
the tokens of a sample form several sequences.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from zigma_pl.core.torch_private import cast_all
from zigma_pl.ops import causal_conv1d_cuda as convolution
from zigma_pl.ops import norms_cuda as norms
from zigma_pl.ops.norms_cuda import Inverses, Modulation, NormGradients
from zigma_pl.ops.selective_scan import direct

# Number of rows between two stored states of the scan. For 32,768 tokens and E = 1,536, storing every 8th state takes
# 201 MB instead of 50 and saves 0.15 ms of recomputation.
KEEP_EVERY = {"nothing": 0, "lean": 32, "fast": 8}
# Shorter sequences without an order are joined to up to JOINED rows, since the scan processes 32 rows at a time.
SHORTEST, JOINED = 64, 256


class MixerWeights(NamedTuple):
    """Parameters of a `MambaMixer`; R is the rank of the step sizes, K the taps of the convolution."""

    in_proj: Tensor  # (2 E, D)
    conv_weight: Tensor  # (E, K)
    conv_bias: Tensor  # (E,)
    x_proj: Tensor  # (R + 2 N, E)
    dt_proj: Tensor  # (E, R)
    dt_bias: Tensor  # (E,)
    A_log: Tensor  # (E, N)
    D: Tensor  # (E,)
    out_proj: Tensor  # (D, E)

    def cast(self, dtype: torch.dtype) -> "CastWeights":
        """Return the weights with matrices cast to a dtype."""
        in_proj, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A_log, skip, out_proj = self
        matrices = [in_proj, x_proj, dt_proj, out_proj]
        if any(matrix.dtype != dtype for matrix in matrices):
            matrices = cast_all(matrices, dtype)
        in_proj, x_proj, dt_proj, out_proj = matrices
        return CastWeights(in_proj, x_proj, dt_proj, out_proj, conv_weight, conv_bias, dt_bias, A_log, skip)


class CastWeights(NamedTuple):
    """Weights for the two passes, with matrices in the dtype of the rows."""

    in_proj: Tensor
    x_proj: Tensor
    dt_proj: Tensor
    out_proj: Tensor
    conv_weight: Tensor
    conv_bias: Tensor
    dt_bias: Tensor
    A_log: Tensor
    D: Tensor


# x, branch, gate, norm_weight, shift, scale
NormInputs = tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor, Tensor]


class Kept(NamedTuple):
    """Tensors that the forward pass stores for the backward pass; empty if they are recomputed or not needed."""

    normalised: Tensor  # (B, L, D)
    rstd: Tensor  # (B, L), float32
    modulated: Tensor  # (B, L, D)
    projected: Tensor  # (S, K, R + 2 N): low-rank step sizes, B, C
    states: Tensor  # of the scan
    entered: Tensor  # (S, K, 2 E), output of in_proj: rows before the convolution, gate
    u: Tensor  # (S, K, E): rows after the convolution
    delta: Tensor  # (S, K, E): before bias and softplus


def shape_of_sequences(shape: torch.Size, length: int, ordered: bool) -> tuple[int, int]:
    """Return (S, K), in which short sequences are joined to longer ones.

    Args:
        shape: (B, L, D).
        length: tokens per sequence, which divides L; 0 for L.
        ordered: whether there is a visit order, which is then the order of one sequence.
    """
    num_batch, num_tokens, _ = shape
    if not length:
        return num_batch, num_tokens
    count = num_tokens // length
    joined = [1] if ordered or length >= SHORTEST else [n for n in range(1, JOINED // length + 1) if count % n == 0]
    return num_batch * count // joined[-1], length * joined[-1]


def _as_sequences(rows: Tensor, length: int) -> Tensor:
    """Return (S, K, X) with separate sequences of `length` rows; unchanged for 0."""
    return rows.view(-1, length, rows.shape[2]) if length else rows


def _scan_inputs(
    u: Tensor, delta: Tensor, projected: Tensor, gate: Tensor, weights: CastWeights
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    num_states = weights.A_log.shape[1]
    _, B, C = projected.split([weights.dt_proj.shape[1], num_states, num_states], -1)
    return u, delta, weights.A_log, B, C, weights.D, gate, weights.dt_bias


def _convolve(rows: Tensor, weights: CastWeights, visit_order: Tensor | None, length: int) -> Tensor:
    parameters = (weights.conv_weight, weights.conv_bias, visit_order, True)
    return convolution.convolve(_as_sequences(rows, length), *parameters).view(rows.shape)


def _restart_every(rows: Tensor, length: int) -> int:
    """Return the argument of the scan for (S, K, X): 0 unless the K rows are several sequences."""
    return 0 if length == rows.shape[1] else length


def _step_sizes(projected: Tensor, weights: CastWeights) -> Tensor:
    return linear(projected[..., : weights.dt_proj.shape[1]], weights.dt_proj)


def run_forward(
    inputs: NormInputs,
    inverses: Inverses,
    weights: CastWeights,
    visit_order: Tensor | None,
    length: int,
    epsilon: float,
    kept: str,
) -> tuple[Tensor, Tensor, Kept]:
    """Return x_new (empty without a branch), the next branch, and what is stored for the backward pass.

    length: tokens per sequence, 0 for L; sequences follow each other in the rows of the next branch.
    """
    x, branch, gate, *vectors = inputs
    keep, fast = kept != "nothing", kept == "fast"
    norm = norms.run_forward(x, branch, gate, Modulation(*vectors), inverses, epsilon, False, keep)
    shape = shape_of_sequences(x.shape, length, visit_order is not None)
    entered = linear(norm.out.view(*shape, -1), weights.in_proj)
    rows, gate = entered.chunk(2, -1)
    u = _convolve(rows, weights, visit_order, length)
    projected = linear(u, weights.x_proj)
    delta = _step_sizes(projected, weights)
    scan_inputs = _scan_inputs(u, delta, projected, gate, weights)
    scanned, states = direct.forward(
        *scan_inputs, visit_order, KEEP_EVERY[kept], log_A=True, restart_every=_restart_every(u, length)
    )
    nothing = u.new_empty(0)
    left = Kept(
        *(norm.normalised, norm.rstd),
        *((norm.out, projected) if keep else (nothing, nothing)),
        *(states, *((entered, u, delta) if fast else (nothing, nothing, nothing))),
    )
    return norm.x_new, linear(scanned, weights.out_proj).view(x.shape), left


def run_backward(
    dx_new: Tensor | None,
    dout: Tensor,
    kept: Kept,
    inputs: tuple[Tensor | None, Tensor | None, Tensor, Tensor, Tensor],
    inverses: Inverses,
    weights: CastWeights,
    visit_order: Tensor | None,
    length: int,
    deterministic: bool,
    stream: torch.dtype,
) -> tuple[NormGradients, MixerWeights]:
    """Return the gradients of the norm's inputs and of the weights, the latter in float32.

    Args:
        dx_new: gradient of x_new, None if it is not used.
        dout: gradient of the next branch.
        kept: tensors from the forward pass.
        inputs: branch, gate, norm_weight, shift and scale.
        inverses, weights, visit_order, length: as in the forward pass.
        deterministic: compute bit-identical gradients on every run.
        stream: dtype of the residual stream.
    """
    branch, gate, *vectors = inputs
    num_rows, width = kept.normalised.shape[0] * kept.normalised.shape[1], kept.normalised.shape[2]
    modulated, dout = kept.modulated.view(num_rows, width), dout.to(kept.modulated.dtype).reshape(num_rows, width)
    dentered, rest = _mixer_backward(dout, kept, modulated, weights, visit_order, length, deterministic)
    in_proj = _weight_gradient(dentered, modulated)
    dmodulated = torch.mm(dentered, weights.in_proj).view_as(kept.normalised)
    del dentered
    gradients = norms.run_backward(
        *(dx_new, dmodulated, (kept.normalised, kept.rstd), branch, gate, Modulation(*vectors)),
        inverses=inverses,
        centred=False,
        stream=stream,
    )
    return gradients, MixerWeights(in_proj, *rest)


def _mixer_backward(
    dout: Tensor,
    kept: Kept,
    modulated: Tensor,
    weights: CastWeights,
    visit_order: Tensor | None,
    length: int,
    deterministic: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the gradients of the output of in_proj, (B L, 2 E), and of all weights after in_proj.

    dout and modulated are (B L, D).
    """
    recompute, projected = not kept.u.numel(), kept.projected
    shape, rank, inner = projected.shape[:2], weights.dt_proj.shape[1], weights.out_proj.shape[1]
    entered = linear(modulated, weights.in_proj).view(*shape, 2 * inner) if recompute else kept.entered
    rows, gate = entered.chunk(2, -1)
    u = _convolve(rows, weights, visit_order, length) if recompute else kept.u
    delta = _step_sizes(projected, weights) if recompute else kept.delta
    dentered = torch.empty_like(entered)
    drows, dgate = dentered.chunk(2, -1)
    found = direct.backward(
        torch.mm(dout, weights.out_proj).view(*shape, inner),
        *(*_scan_inputs(u, delta, projected, gate, weights), visit_order, kept.states),
        log_A=True,
        restart_every=_restart_every(u, length),
        deterministic=deterministic,
        want_output=True,
        dgate=dgate,
    )
    du, ddelta, dA_log, BC, dskip, dbias, _, scanned = found
    del found, delta, gate
    assert scanned is not None
    du_flat, u = du.view(-1, inner), u.view(-1, inner)
    out_proj = _weight_gradient(dout, scanned.view(-1, inner))
    del scanned
    projected, ddelta = projected.view(len(dout), -1), ddelta.view(-1, inner)
    dprojected = torch.empty_like(projected)
    torch.mm(ddelta, weights.dt_proj, out=dprojected[:, :rank])
    dprojected[:, rank:].copy_(BC.view(len(dout), -1))
    dt_proj = _weight_gradient(ddelta, projected[:, :rank])
    del ddelta
    x_proj = _weight_gradient(dprojected, u)
    du_flat.addmm_(dprojected, weights.x_proj)
    du, rows, drows = (_as_sequences(t, length) for t in (du, rows, drows))
    _, conv_weight, conv_bias = convolution.convolve_backward(
        du, rows, weights.conv_weight, weights.conv_bias, visit_order, True, dx=drows
    )
    dweights = (conv_weight, conv_bias, x_proj, dt_proj, dbias, dA_log, dskip, out_proj)
    return dentered.view(len(dout), -1), dweights


def _weight_gradient(doutput: Tensor, rows: Tensor) -> Tensor:
    """Return the gradient (Y, X) of a weight in float32, from (B L, Y) and (B L, X)."""
    if rows.is_cuda and rows.dtype != torch.float32:
        return torch.mm(doutput.t(), rows, out_dtype=torch.float32)
    return torch.mm(doutput.t(), rows).float()
