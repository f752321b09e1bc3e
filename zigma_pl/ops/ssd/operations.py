"""Numbers of arithmetic operations of SSD as matrix products over chunks (arXiv:2405.21060, section 6).

Products of the lower triangle within a chunk count as whole products, as matrix units compute them. The sequential
recurrence would need fewer operations, about 5 N per token and channel.

Axes: B batch, L tokens, H heads, P width of a head, G groups, N state, Q tokens of a chunk.
"""

from dataclasses import dataclass
from typing import Any

import torch

from zigma_pl.ops.operations import SILU, SILU_BACKWARD, SOFTPLUS, Flops, counts_operations_of
from zigma_pl.ops.ssd import cpu, cuda  # noqa: F401  both register the ops that are used below
from zigma_pl.ops.ssd.chunks import chunk_length, num_chunks


@dataclass(frozen=True)
class _Sizes:
    """Sizes of a call."""

    batch: int
    tokens: int
    heads: int
    head_dim: int
    groups: int
    states: int

    @classmethod
    def of(cls, x: Any, B: Any) -> "_Sizes":
        return cls(*x, *B[2:])

    def per_chunk(self, *, products: int, state_products: int, score_products: int, pairs: int, row_states: int) -> int:
        """Return the operations on chunks.

        Args:
            products: products (Q, Q) x (Q, P) per head.
            state_products: products between (Q, N), (Q, P) and (N, P) per head, if there is more than one chunk.
            score_products: products (Q, N) x (Q, N) -> (Q, Q), or back, per group.
            pairs: other operations per head and pair of tokens.
            row_states: other operations per head, token and state, if there is more than one chunk.
        """
        q, n, p = chunk_length(self.tokens), self.states, self.head_dim
        per_head = q * q * (2 * p * products + pairs)
        if num_chunks(self.tokens) > 1:
            per_head += q * n * (2 * p * state_products + row_states)
        per_sample = self.heads * per_head + self.groups * 2 * q * q * n * score_products
        return self.batch * num_chunks(self.tokens) * per_sample

    def per_row(self, each_channel: int, each_head: int) -> int:
        """Return the operations per token on channels and heads."""
        return self.batch * self.tokens * self.heads * (self.head_dim * each_channel + each_head)

    def per_state(self, each: int) -> int:
        """Return the operations on the states between chunks."""
        chunks = num_chunks(self.tokens)
        return self.batch * chunks * self.heads * self.states * self.head_dim * each * (chunks > 1)


@counts_operations_of(torch.ops.zigma_pl.ssd_cpu, torch.ops.zigma_pl.ssd_cuda)
def ssd_operations(
    x: Any, dt: Any, A: Any, B: Any, C: Any, skip: Any, gate: Any, dt_bias: Any, *_: Any, **__: Any
) -> Flops:
    """Count the forward pass; the arguments are shapes, x (B, L, H, P), B (B, L, G, N)."""
    sizes = _Sizes.of(x, B)
    # M X; the state at the end of a chunk, and what its tokens read from its start; C B^T; difference, exp and product
    # of a decay with a score; B and C times their decays.
    chunks = sizes.per_chunk(products=1, state_products=2, score_products=1, pairs=3, row_states=2)
    each_channel = 1  # d x
    each_channel += 2 * (skip is not None) + (SILU + 1) * (gate is not None)
    each_head = 2 + (1 + SOFTPLUS) * (dt_bias is not None)  # d A and its sum
    return Flops(scan=chunks + sizes.per_row(each_channel, each_head) + sizes.per_state(2))


@counts_operations_of(torch.ops.zigma_pl.ssd_cpu_backward, torch.ops.zigma_pl.ssd_cuda_backward)
def ssd_backward_operations(
    dout: Any, x: Any, dt: Any, A: Any, B: Any, C: Any, skip: Any, gate: Any, dt_bias: Any, *_: Any, **__: Any
) -> Flops:
    """Count the backward pass, including recomputation; sums over pairs count one operation per pair and axis."""
    sizes = _Sizes.of(x, B)
    # dM and M^T dy; gradients of the state before and after a chunk, of B and C through them, and of x; C B^T again,
    # dC and dB; decays again (2), M, dM times decay, its sum over heads, d(log decay) and its two sums; B and C times
    # their decays, twice, their sums over heads, and products with B and C with their sums.
    chunks = sizes.per_chunk(products=2, state_products=4, score_products=3, pairs=2 + 1 + 1 + 1 + 1 + 2, row_states=10)
    each_channel = 1 + 1 + 2  # d x again; dx; contributions to dd
    each_channel += 4 * (skip is not None)  # contributions to dx and dskip
    each_channel += (SILU_BACKWARD + 4) * (gate is not None)  # dgate = dout y silu', dy = dout silu(gate) from s above
    each_head = 2 + 2 + 2  # d A and its sum again; contributions to dd and dA
    each_head += (1 + SOFTPLUS + 5) * (dt_bias is not None)  # recompute; (1 - exp(-d)) dd, and its sum
    return Flops(scan=chunks + sizes.per_row(each_channel, each_head) + sizes.per_state(4))
