"""Numbers of arithmetic operations of the selective scan (Mamba, arXiv:2312.00752, Eq. 2).

The literature often counts 9 operations per token, channel and state, for a forward pass as a parallel associative
scan; the sequential scan here needs fewer.

Axes: B batch, L tokens, E inner width, N state.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from zigma_pl.ops.operations import SILU, SILU_BACKWARD, SOFTPLUS, Flops, counts_operations_of
from zigma_pl.ops.selective_scan import cpu, cuda  # noqa: F401  both register the ops that are used below


@dataclass(frozen=True)
class StateUpdate:
    """Operations of one pass of the scan per token, channel and state."""

    exponentials: int
    multiplications: int
    multiply_adds: int

    @property
    def instructions(self) -> int:
        """Instructions of the multiply-add units, in which a multiplication takes as long as a multiply-add."""
        return self.multiplications + self.multiply_adds

    @property
    def flops(self) -> int:
        """Arithmetic operations."""
        return self.exponentials + self.multiplications + 2 * self.multiply_adds


# delta A, exp, (delta u) B, decay h + that, y + C h.
STATE_UPDATE = StateUpdate(exponentials=1, multiplications=2, multiply_adds=2)
# Recomputation of all of that except C h; the adjoint dh + C dy, and decay dh for the step before (a multiply-add, a
# multiplication); dC, dB and d(delta u) (3 multiply-adds); d(delta A) = dh decay h (2 multiplications), and its
# contributions to ddelta and dA (2 multiply-adds).
STATE_UPDATE_BACKWARD = StateUpdate(exponentials=1, multiplications=2 + 1 + 2, multiply_adds=1 + 1 + 3 + 2)


@counts_operations_of(torch.ops.zigma_pl.selective_scan_cpu, torch.ops.zigma_pl.selective_scan_cuda)
def scan_operations(
    u: Any, delta: Any, A: Any, B: Any, C: Any, skip: Any, gate: Any, delta_bias: Any, *_: Any, **__: Any
) -> Flops:
    """Count the forward pass; the arguments are shapes, u (B, L, E), A (E, N)."""
    each_channel = 1  # delta u
    each_channel += 2 * (skip is not None) + (SILU + 1) * (gate is not None) + (1 + SOFTPLUS) * (delta_bias is not None)
    return Flops(scan=math.prod(u) * (STATE_UPDATE.flops * A[1] + each_channel))


@counts_operations_of(torch.ops.zigma_pl.selective_scan_cpu_backward, torch.ops.zigma_pl.selective_scan_cuda_backward)
def scan_backward_operations(
    dout: Any, u: Any, delta: Any, A: Any, B: Any, C: Any, skip: Any, gate: Any, delta_bias: Any, *_: Any, **__: Any
) -> Flops:
    """Count the backward pass, including recomputation."""
    each_channel = 1 + 3  # recompute delta u; d(delta u) times delta and times u, the latter added to ddelta
    each_channel += 4 * (skip is not None)  # contributions to du and dskip
    each_channel += (SILU_BACKWARD + 4) * (gate is not None)  # dgate = dout y silu', dy = dout silu(gate) from s above
    each_channel += (1 + SOFTPLUS + 5) * (delta_bias is not None)  # recompute; (1 - exp(-delta)) ddelta, and its sum
    return Flops(scan=math.prod(u) * (STATE_UPDATE_BACKWARD.flops * A[1] + each_channel))
