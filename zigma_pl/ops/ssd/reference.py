"""Reference implementation of SSD: a loop over steps that autograd differentiates; readable but slow."""

import torch
from torch import Tensor
from torch.nn import functional as F

from zigma_pl.ops.rows import compute_dtype, inverse_order, take_rows


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
    """Run the recurrence with the arguments of `zigma_pl.ops.ssd.ssd`, in float64 for float64 x."""
    dtype = compute_dtype(x)
    arranged_x, dt, B, C = (arrange(rows.to(dtype), visit_order) for rows in (x, dt, B, C))
    step = dt if dt_bias is None else F.softplus(dt + dt_bias.to(dtype))
    heads_per_group = x.shape[2] // B.shape[2]
    B, C = (rows.repeat_interleave(heads_per_group, dim=2) for rows in (B, C))
    y = _recur(arranged_x, step, A.to(dtype), B, C)
    if skip is not None:
        y = y + skip.to(dtype)[:, None] * arranged_x
    if visit_order is not None:
        y = arrange(y, inverse_order(visit_order))
    if gate is not None:
        y = y * F.silu(gate.to(dtype))
    return y.to(x.dtype)


def arrange(rows: Tensor, visit_order: Tensor | None) -> Tensor:
    """Return rows (B, L, ...) in the visit order, (L,) or (B, L)."""
    return rows if visit_order is None else take_rows(rows.flatten(2), visit_order).view(rows.shape)


def _recur(x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Return y (B, L, H, P); B and C are (B, L, H, N)."""
    h = x.new_zeros(*x.shape[:1], *x.shape[2:], B.shape[-1])
    outputs = []
    for x_k, step_k, B_k, C_k in zip(x.unbind(1), step.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        decay = torch.exp(step_k * A)[..., None, None]
        h = decay * h + (step_k[..., None] * x_k)[..., None] * B_k[:, :, None]
        outputs.append((h * C_k[:, :, None]).sum(-1))
    return torch.stack(outputs, 1)
