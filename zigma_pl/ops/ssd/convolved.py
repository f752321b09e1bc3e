"""The convolution and the scan of Mamba-2 as one function on NVIDIA GPUs, from the output of the input projection.

As separate autograd functions, they would concatenate their gradients, which copies each once or twice: those of x, B
and C for the convolution, and those of the gate, the convolution's input and the step sizes for the projection. Here
the kernels write them in place, except those of B and C, which are copied once.

Axes: B batch, L tokens, E inner width, H heads, P width of a head, G groups, N state.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zigma_pl.ops import causal_conv1d_cuda as convolution
from zigma_pl.ops.nvrtc import ROW_KINDS, runs_eagerly
from zigma_pl.ops.ssd import cuda, launch


@dataclass(frozen=True)
class Sizes:
    """Sizes of a scan."""

    num_heads: int
    head_dim: int
    num_groups: int
    num_states: int

    @property
    def parts(self) -> list[int]:
        """Columns of the projection: gate; x, B and C; step sizes."""
        inner = self.num_heads * self.head_dim
        return [inner, inner + 2 * self.num_groups * self.num_states, self.num_heads]

    def are_aligned(self, itemsize: int) -> bool:
        """Return whether rows of all parts start at multiples of 16 bytes in the projection and in the convolution."""
        gate, convolved, steps = self.parts
        return not any(columns * itemsize % 16 for columns in (gate, convolved, gate + convolved + steps))

    def split(self, convolved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return x (B, L, H, P), B and C (B, L, G, N) of rows (B, L, E + 2 G N)."""
        terms = self.num_groups * self.num_states
        x, B, C = convolved.split([self.num_heads * self.head_dim, terms, terms], -1)
        groups = (self.num_groups, self.num_states)
        return self.as_heads(x), B.unflatten(-1, groups), C.unflatten(-1, groups)

    def as_heads(self, rows: Tensor) -> Tensor:
        """View (B, L, E) as (B, L, H, P)."""
        return rows.unflatten(-1, (self.num_heads, self.head_dim))


def runs_fused(projected: Tensor, conv_weight: Tensor, visit_order: Tensor | None, sizes: Sizes, backend: str) -> bool:
    """Return whether `convolve_and_scan` supports these arguments and is faster than separate ones, in training."""
    return (
        torch.is_grad_enabled()
        and projected.requires_grad
        and backend in ("auto", "cuda")
        and projected.is_cuda
        and runs_eagerly(projected)
        and projected.dtype in ROW_KINDS
        and projected.is_contiguous()
        and sizes.are_aligned(projected.element_size())
        and launch.supports(sizes.num_states, sizes.head_dim)
        and conv_weight.shape[1] <= convolution.MAX_TAPS
        and (visit_order is None or visit_order.ndim == 1)
        and cuda.available()[0]
    )


def convolve_and_scan(
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    A: Tensor,
    skip: Tensor,
    dt_bias: Tensor,
    visit_order: Tensor | None,
    sizes: Sizes,
    deterministic: bool,
) -> Tensor:
    """Convolve x, B and C along an order, with silu, scan, and multiply by silu(gate), as in Mamba-2.

    Args:
        projected: (B, L, E + (E + 2 G N) + H): gate; x, B and C; step sizes before bias and softplus.
        conv_weight: (E + 2 G N, K).
        conv_bias: (E + 2 G N,).
        A, skip, dt_bias: (H,), see `zigma_pl.ops.ssd.ssd`.
        visit_order: (L,) int32 or int64, None for raster order.
        sizes: sizes of the scan.
        deterministic: compute bit-identical gradients on every run.

    Returns: (B, L, E), in raster order.
    """
    return _ConvolveAndScan.apply(
        projected, conv_weight, conv_bias, A, skip, dt_bias, visit_order, sizes, deterministic
    )


class _ConvolveAndScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        conv_weight: Tensor,
        conv_bias: Tensor,
        A: Tensor,
        skip: Tensor,
        dt_bias: Tensor,
        visit_order: Tensor | None,
        sizes: Sizes,
        deterministic: bool,
    ) -> Tensor:
        gate, rows, dt = projected.split(sizes.parts, -1)
        convolved = convolution.convolve(rows, conv_weight, conv_bias, visit_order, True)
        x, B, C = sizes.split(convolved)
        y, states = cuda.forward(x, dt, A, B, C, skip, sizes.as_heads(gate), dt_bias, visit_order, True)
        ctx.sizes, ctx.deterministic = sizes, deterministic
        ctx.save_for_backward(projected, conv_weight, conv_bias, A, skip, dt_bias, visit_order, convolved, states)
        return y.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        # Saved tensors are read once: under activation checkpointing, a second access is an error.
        projected, conv_weight, conv_bias, A, skip, dt_bias, visit_order, convolved, states = ctx.saved_tensors
        sizes: Sizes = ctx.sizes
        gate, rows, dt = projected.split(sizes.parts, -1)
        dprojected, dconvolved = torch.empty_like(projected), torch.empty_like(convolved)
        dgate, drows, ddt = dprojected.split(sizes.parts, -1)
        x, B, C = sizes.split(convolved)
        found = cuda.backward(
            *(sizes.as_heads(dy), x, dt, A, B, C, skip, sizes.as_heads(gate), dt_bias, visit_order, states),
            ctx.deterministic,
            dx=sizes.split(dconvolved)[0],
            dgate=sizes.as_heads(dgate),
            ddt=ddt,
        )
        dconvolved[..., sizes.parts[0] :].copy_(found["dBC"].flatten(2))
        del convolved, x, B, C
        _, dweight, dbias = convolution.convolve_backward(
            dconvolved, rows, conv_weight, conv_bias, visit_order, True, dx=drows
        )
        dA, dskip, ddt_bias = found["sums"].unbind(1)
        parameters = (conv_weight, conv_bias, A, skip, dt_bias)
        found_for = zip((dweight, dbias, dA, dskip, ddt_bias), parameters, strict=True)
        return dprojected, *(gradient.to(parameter.dtype) for gradient, parameter in found_for), None, None, None
