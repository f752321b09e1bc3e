"""The kinds of scans that `bench scan` times: their inputs as a network makes them, their reference, their least work.

Axes: B batch, L tokens, E inner width, N state.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from zigma_pl.benchmarks.roofline import Pass, Work, scan_work, ssd_work
from zigma_pl.ops.selective_scan import reference
from zigma_pl.ops.ssd import reference as ssd_reference
from zigma_pl.scan.paths import visit_order as zigzag_order

Shape = tuple[int, int, int, int]
Arguments = dict[str, Tensor]

SSD_HEAD_DIM, SSD_STATES = 64, 64  # of Mamba-2 by default; its groups are 1


@dataclass(frozen=True)
class ScanKind:
    """What the contestants of one kind compute.

    Args:
        make_arguments: (shape, dtype, device, fused) -> inputs by name.
        reference: the float64 reference.
        work: (shape, bytes per element, gated) -> least work of each pass.
        checked_shape: number of states -> small shape for the check before timing.
    """

    make_arguments: Callable[[Shape, torch.dtype, torch.device, bool], Arguments]
    reference: Callable[..., Tensor]
    work: Callable[[Shape, int, bool], dict[Pass, Work]]
    checked_shape: Callable[[int], Shape]


def make_arguments(shape: Shape, dtype: torch.dtype, device: torch.device, fused: bool) -> Arguments:
    """Return random inputs with the magnitudes of a freshly initialised Mamba block.

    Args:
        shape: (B, L, E, N).
        dtype: dtype of u, delta, B, C and gate; A, skip and delta_bias are float32.
        device: device of the inputs.
        fused: include gate and delta_bias, with B, C and gate as slices of larger tensors, as in a network; otherwise
            delta > 0.
    """
    num_rows, num_tokens, num_channels, num_states = shape
    generator = torch.Generator(device).manual_seed(0)
    normal = partial(torch.randn, generator=generator, device=device, dtype=dtype)
    uniform = partial(torch.rand, generator=generator, device=device)
    dt_rank = math.ceil(num_channels / 32) if fused else 0
    low_rank = normal(num_rows, num_tokens, dt_rank + 2 * num_states)
    arguments = {
        "u": normal(num_rows, num_tokens, num_channels),
        "A": -torch.arange(1.0, num_states + 1, device=device).repeat(num_channels, 1),
        "B": low_rank[..., dt_rank : dt_rank + num_states],
        "C": low_rank[..., dt_rank + num_states :],
        "skip": normal(num_channels).float(),
    }
    if not fused:
        return arguments | {"delta": (0.001 + 0.1 * uniform(num_rows, num_tokens, num_channels)).to(dtype)}
    delta = 0.001 + 0.1 * uniform(num_channels)
    return (
        arguments
        | {
            "delta": 0.1 * normal(num_rows, num_tokens, num_channels),
            "delta_bias": delta + torch.log(-torch.expm1(-delta)),  # inverse softplus of delta
            "gate": normal(num_rows, num_tokens, 2 * num_channels)[..., num_channels:],
        }
    )


def make_order(num_tokens: int, device: torch.device) -> Tensor:
    """Return the first zigzag order on a GPU if the tokens form a square grid, else a random order."""
    side = math.isqrt(num_tokens)
    if device.type == "cuda" and side**2 == num_tokens:
        return torch.as_tensor(zigzag_order("zigzag", side, side), dtype=torch.int32, device=device)
    return torch.randperm(num_tokens, generator=torch.Generator().manual_seed(0)).int().to(device)


def ssd_head_dim(num_channels: int) -> int:
    """Return the width of a head: that of Mamba-2, or the largest power of two that divides a small E."""
    return math.gcd(num_channels, SSD_HEAD_DIM)


def make_ssd_arguments(shape: Shape, dtype: torch.dtype, device: torch.device, fused: bool) -> Arguments:
    """Return random inputs with the magnitudes of a freshly initialised Mamba-2 block.

    Args:
        shape: (B, L, E, N), of which E is divided into heads; there are SSD_STATES states, not N.
        dtype: dtype of x, dt, B, C and gate; A, skip and dt_bias are float32.
        device: device of the inputs.
        fused: include gate and dt_bias, with rows as slices of larger tensors, as in a network; otherwise dt > 0.
    """
    num_rows, num_tokens, num_channels, _ = shape
    head_dim, tokens = ssd_head_dim(num_channels), (num_rows, num_tokens)
    num_heads = num_channels // head_dim
    generator = torch.Generator(device).manual_seed(0)
    normal = partial(torch.randn, generator=generator, device=device, dtype=dtype)
    uniform = partial(torch.rand, generator=generator, device=device)
    convolved = normal(*tokens, num_channels + 2 * SSD_STATES)
    projected = normal(*tokens, num_channels + convolved.shape[-1] + num_heads)
    heads = (num_heads, head_dim)
    arguments = {
        "x": convolved[..., :num_channels].unflatten(-1, heads),
        "A": -(1 + 15 * uniform(num_heads)),
        "B": convolved[..., None, num_channels:-SSD_STATES],
        "C": convolved[..., None, -SSD_STATES:],
        "skip": normal(num_heads).float(),
    }
    step = 0.001 + 0.1 * uniform(num_heads)
    if not fused:
        return arguments | {"dt": (step * (0.5 + uniform(*tokens, num_heads))).to(dtype)}
    return (
        arguments
        | {
            "dt": projected[..., -num_heads:],
            "dt_bias": step + torch.log(-torch.expm1(-step)),  # inverse softplus of the step
            "gate": projected[..., :num_channels].unflatten(-1, heads),
        }
    )


SELECTIVE_SCAN = ScanKind(make_arguments, reference.run, scan_work, lambda num_states: (2, 67, 40, num_states))
SSD = ScanKind(
    make_ssd_arguments,
    ssd_reference.run,
    lambda shape, size, gated: ssd_work(shape, size, gated, SSD_STATES, ssd_head_dim(shape[2])),
    lambda num_states: (2, 131, 2 * SSD_HEAD_DIM, SSD_STATES),
)
