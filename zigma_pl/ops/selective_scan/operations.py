"""How many arithmetic operations the selective scan takes (Mamba, arXiv:2312.00752, Eq. 2).

Often 9 operations for each token, channel and state are counted, for the forward pass as a parallel, associative scan.

Axes: B batch, L tokens, E inner width, N state.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from zigma_pl.ops.operations import SILU, SILU_BACKWARD, SOFTPLUS, Flops, counts_operations_of
from zigma_pl.ops.selective_scan import cpu, cuda  # noqa: F401  both register the ops that are named below


@dataclass(frozen=True)
class StateUpdate:
    """What the scan computes for each token, channel and state in one pass."""

    exponentials: int
    multiplications: int
    multiply_adds: int

    @property
    def instructions(self) -> int:
        """On the multiply-add units, which take a multiplication alone as long."""
        return self.multiplications + self.multiply_adds

    @property
    def flops(self) -> int:
        """Arithmetic operations."""
        return self.exponentials + self.multiplications + 2 * self.multiply_adds


# delta A, exp, (delta u) B, decay h + that, y + C h.
STATE_UPDATE = StateUpdate(exponentials=1, multiplications=2, multiply_adds=2)
# All of that but C h again; the adjoint dh + C dy and what it passes on, decay dh (a multiply-add, a multiplication);
# dC, dB and d(delta u) (3 multiply-adds); d(delta A) = dh decay h (2 multiplications), its parts in ddelta and dA (2).
STATE_UPDATE_BACKWARD = StateUpdate(exponentials=1, multiplications=2 + 1 + 2, multiply_adds=1 + 1 + 3 + 2)


@counts_operations_of(torch.ops.zigma_pl.selective_scan_cpu, torch.ops.zigma_pl.selective_scan_cuda)
def scan_operations(
    u: Any, delta: Any, A: Any, B: Any, C: Any, skip: Any, gate: Any, delta_bias: Any, *_: Any, **__: Any
) -> Flops:
    """Count the forward pass, with shapes for tensors: u (B, L, E), A (E, N)."""
    each_channel = 1  # delta u
    each_channel += 2 * (skip is not None) + (SILU + 1) * (gate is not None) + (1 + SOFTPLUS) * (delta_bias is not None)
    return Flops(scan=math.prod(u) * (STATE_UPDATE.flops * A[1] + each_channel))


@counts_operations_of(torch.ops.zigma_pl.selective_scan_cpu_backward, torch.ops.zigma_pl.selective_scan_cuda_backward)
def scan_backward_operations(
    dout: Any, u: Any, delta: Any, A: Any, B: Any, C: Any, skip: Any, gate: Any, delta_bias: Any, *_: Any, **__: Any
) -> Flops:
    """Count the backward pass, with what it computes again."""
    each_channel = 1 + 3  # delta u again; d(delta u) times delta and times u, the latter added to ddelta
    each_channel += 4 * (skip is not None)  # its parts in du and dskip
    each_channel += (SILU_BACKWARD + 4) * (gate is not None)  # dgate = dout y silu', dy = dout silu(gate) from s above
    each_channel += (1 + SOFTPLUS + 5) * (delta_bias is not None)  # again; (1 - exp(-delta)) ddelta, and its sum
    return Flops(scan=math.prod(u) * (STATE_UPDATE_BACKWARD.flops * A[1] + each_channel))
