"""Reference implementation of the selective scan: a loop over steps that autograd differentiates; readable but slow."""

import torch
from torch import Tensor
from torch.nn import functional as F

from zigma_pl.ops.rows import compute_dtype, inverse_order


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
) -> Tensor:
    """Run the scan with the arguments of `zigma_pl.ops.selective_scan.selective_scan`, in float64 for float64 u."""
    dtype = compute_dtype(u)
    arranged_u, delta, B, C = (arrange(rows.to(dtype), visit_order) for rows in (u, delta, B, C))
    if delta_bias is not None:
        delta = F.softplus(delta + delta_bias.to(dtype))
    y = _recur(arranged_u, delta, A.to(dtype), B, C)
    if skip is not None:
        y = y + skip.to(dtype) * arranged_u
    if visit_order is not None:
        y = arrange(y, inverse_order(visit_order))
    if gate is not None:
        y = y * F.silu(gate.to(dtype))
    return y.to(u.dtype)


def arrange(rows: Tensor, visit_order: Tensor | None) -> Tensor:
    """Return rows (B, L, X) in visit order."""
    return rows if visit_order is None else rows[:, visit_order.long()]


def _recur(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    h = u.new_zeros(u.shape[0], *A.shape)
    outputs = []
    for u_k, delta_k, B_k, C_k in zip(u.unbind(1), delta.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        decay = torch.exp(delta_k.unsqueeze(-1) * A)
        h = decay * h + (delta_k * u_k).unsqueeze(-1) * B_k.unsqueeze(1)
        outputs.append((h * C_k.unsqueeze(1)).sum(-1))
    return torch.stack(outputs, 1)
