"""Mamba's selective state-space mixer, which scans tokens along a visit order.

Axes: B batch, L tokens, D width, E inner width, N state.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.models.layers.replaceable import is_product, is_replaceable
from zigma_pl.models.layers.shapes import check_shape
from zigma_pl.models.mixers.base import ActivationMemory, Branch, Cut, Mixer, Visit
from zigma_pl.models.mixers.directions import Direction, DirectionOptions
from zigma_pl.ops import mamba_mixer
from zigma_pl.ops.causal_conv1d import causal_conv1d
from zigma_pl.ops.mamba_mixer import MixerWeights
from zigma_pl.ops.mamba_mixer_cuda import KEEP_EVERY
from zigma_pl.ops.rows import UnscaledRows
from zigma_pl.ops.selective_scan import ScanBackend, selective_scan


class ScanDirection(Direction):
    """The causal convolution and the selective scan of one direction, with their parameters.

    Args:
        width: D; the rank of the step sizes is D / 16, rounded up.
        state_size: N, number of states per inner channel.
        expand: E = expand * D.
        conv_kernel: taps of the causal convolution.
        scan_backend: implementation of the scan; "auto" chooses by device.
    """

    parameter_roles: ClassVar[dict[str, str]] = {
        "A_log": "scan",
        "D": "scan",
        "dt_proj.bias": "scan",
        "conv_weight": "convolution",
    }

    def __init__(
        self,
        width: int,
        state_size: int = 16,
        expand: int = 2,
        conv_kernel: int = 4,
        scan_backend: ScanBackend = "auto",
    ) -> None:
        super().__init__()
        inner = expand * width
        self.inner_width, self.num_projected = inner, 2 * inner
        self.state_size = state_size
        self.dt_rank = math.ceil(width / 16)
        self.scan_backend: ScanBackend = scan_backend
        self.conv_weight = nn.Parameter(torch.empty(inner, conv_kernel).uniform_(-1, 1) / math.sqrt(conv_kernel))
        self.conv_bias = nn.Parameter(torch.zeros(inner))
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * state_size, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, inner)
        self.A_log = nn.Parameter(torch.arange(1, state_size + 1, dtype=torch.float32).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self._initialise_step_sizes()

    def _initialise_step_sizes(self, smallest: float = 1e-3, largest: float = 0.1) -> None:
        """Draw dt log-uniformly from [smallest, largest] and set the bias to softplus^-1(dt) (Mamba, section 3.6)."""
        bound = self.dt_rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        dt = torch.exp(torch.empty_like(self.dt_proj.bias).uniform_(math.log(smallest), math.log(largest)))
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def scan(self, projected: Tensor, visit_order: Tensor | None = None) -> Tensor:
        """Convolve and scan along visit_order, (L,), and multiply by silu(gate): (B, L, 2 E) -> (B, L, E)."""
        deterministic = torch.are_deterministic_algorithms_enabled()  # set by Trainer(deterministic=True)
        x, gate = projected.chunk(2, dim=-1)
        x = causal_conv1d(
            x, self.conv_weight, self.conv_bias, visit_order=visit_order, activation="silu", deterministic=deterministic
        )
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.state_size, self.state_size], dim=-1)
        return selective_scan(
            x,
            linear(dt, self.dt_proj.weight),
            -torch.exp(self.A_log.float()),
            B,
            C,
            skip=self.D,
            gate=gate,
            delta_bias=self.dt_proj.bias,
            visit_order=visit_order,
            backend=self.scan_backend,
            deterministic=deterministic,
        )


class MambaMixer(ScanDirection, Mixer):
    """A causal convolution and a selective scan along a visit order: (B, L, D) -> (B, L, D).

    Both operations read and write rows through the order as an index, so the output stays in raster order
    (Mamba, arXiv:2312.00752, section 3; ZigMa, arXiv:2403.13802, Eq. 3).

    Args:
        width, state_size, expand, conv_kernel, scan_backend: see `ScanDirection`.
        activation_memory: "lean" stores few activations for the backward pass on a GPU and recomputes the rest; "fast"
            stores more; "auto" is "lean" until `store_more_activations` is called.
    """

    def __init__(
        self,
        width: int,
        state_size: int = 16,
        expand: int = 2,
        conv_kernel: int = 4,
        scan_backend: ScanBackend = "auto",
        activation_memory: ActivationMemory = "auto",
    ) -> None:
        super().__init__(width, state_size, expand, conv_kernel, scan_backend)
        inner = expand * width
        self.activation_memory = activation_memory
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.out_proj = nn.Linear(inner, width, bias=False)
        self.sort_channels()

    @torch.no_grad()
    def sort_channels(self) -> None:
        """Sort the inner channels by step size, which does not change the output except for rounding.

        Channels that a GPU thread block processes together then have similar decay rates. When a long sequence is
        split into chunks, the sum that gives the state at the end of a chunk can therefore stop early for all of them
        at the same time. The channels with the slowest decay, which take longest, come first.
        """
        order = self.dt_proj.bias.argsort()
        for rows in (self.conv_weight, self.conv_bias, self.dt_proj.weight, self.dt_proj.bias, self.A_log, self.D):
            rows.copy_(rows[order])
        for columns in (self.x_proj.weight, self.out_proj.weight):
            columns.copy_(columns[:, order])
        for half in self.in_proj.weight.chunk(2):
            half.copy_(half[order])

    def extra_activation_bytes(self, num_tokens: int, itemsize: int) -> int:
        """Return the bytes of four more tensors of the inner width, and of four times as many states of the scan."""
        if self.activation_memory != "auto":
            return 0
        states = self.state_size * 4 * (1 / KEEP_EVERY["fast"] - 1 / KEEP_EVERY["lean"])  # in float32
        return round(num_tokens * self.out_proj.in_features * (4 * itemsize + states))

    def wants_rows_arranged(self, visit: Visit) -> bool:
        """Return True for an order per sample, since the kernels read rows through a single order."""
        return visit.order is not None and visit.order.ndim > 1

    def forward(self, tokens: Tensor, visit: Visit) -> Tensor:
        """Mix tokens (B, L, D) along the order of the visit, (L,), or in stored order without one."""
        check_shape("MambaMixer", "tokens", tokens, "(B, L, D)", None, None, self.in_proj.in_features)
        return self.out_proj(self.scan(self.in_proj(tokens), visit.order))

    def add_norm_mix(
        self,
        x: Tensor,
        branch: Branch | None,
        norm: nn.RMSNorm,
        shift: Tensor,
        scale: Tensor,
        visit: Visit,
        cut: Cut | None = None,
    ) -> tuple[Tensor, Tensor | UnscaledRows, Tensor | None]:
        """Add, normalise, modulate and mix, as one fused op on a GPU."""
        assert norm.eps is not None
        weights = self._weights()
        if (
            weights is None
            or not mamba_mixer.runs_fused(x, shift, weights, self.scan_backend)
            or self.wants_rows_arranged(visit)
        ):
            return super().add_norm_mix(x, branch, norm, shift, scale, visit, cut)
        length, out_inverse = (0, None) if cut is None else cut
        rows, gate, inverse = (None, None, None) if branch is None else (branch.rows, branch.gate, branch.inverse)
        x, mixed = mamba_mixer.add_norm_mix(
            *(x, rows, gate, norm.weight, shift, scale, weights, visit.order),
            epsilon=norm.eps,
            activation_memory="fast" if self.activation_memory == "fast" else "lean",
            deterministic=torch.are_deterministic_algorithms_enabled(),
            branch_inverse=inverse,
            out_inverse=out_inverse,
            length=length,
        )
        return x, mixed, out_inverse

    def _weights(self) -> MixerWeights | None:
        """Return the weights of the fused op, None unless it computes what the methods and layers would compute."""
        if not (
            is_replaceable(self, MambaMixer)
            and type(self).scan is ScanDirection.scan
            and all(map(is_product, (self.in_proj, self.x_proj, self.out_proj)))
        ):
            return None
        return MixerWeights(
            *(self.in_proj.weight, self.conv_weight, self.conv_bias, self.x_proj.weight, self.dt_proj.weight),
            *(self.dt_proj.bias, self.A_log, self.D, self.out_proj.weight),
        )


def check_sizes(options: Any) -> None:
    """Raise UserError if state_size, expand or conv_kernel is out of range."""
    largest = {"state_size": 4096, "expand": 64, "conv_kernel": 64}
    for name, most in largest.items():
        check_whole_numbers(type(options).__name__, most=most, **{name: getattr(options, name)})


@dataclass(frozen=True)
class Mamba(DirectionOptions):
    """Mamba (arXiv:2312.00752): a causal convolution and a selective scan along one order.

    Args:
        state_size: N, number of states per inner channel of the scan.
        expand: inner width divided by D.
        conv_kernel: taps of the causal convolution.
        scan_backend: implementation of the scan; "auto" chooses by device.
        activation_memory: how many activations a layer stores for the backward pass on a GPU: "lean" few, with the rest
            recomputed; "fast" twice as many, for training steps that take a tenth less time; "auto" the latter if the
            memory of the GPU suffices, which `fit` finds out in its first step.
    """

    state_size: int = 16
    expand: int = 2
    conv_kernel: int = 4
    scan_backend: ScanBackend = "auto"
    activation_memory: ActivationMemory = "auto"

    def __post_init__(self) -> None:
        check_sizes(self)

    def build(self, width: int) -> MambaMixer:
        """Build one layer."""
        return MambaMixer(
            *(width, self.state_size, self.expand, self.conv_kernel, self.scan_backend, self.activation_memory)
        )

    def build_direction(self, width: int) -> ScanDirection:
        """Build the scan of one direction."""
        return ScanDirection(width, self.state_size, self.expand, self.conv_kernel, self.scan_backend)
