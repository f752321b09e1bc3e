"""The selective state-space mixer of Mamba, its rows visited in one given order or in several at once.

Axes: B batch, L tokens, D width, E inner width, N state.
"""

import functools
import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from zigma_pl.nn.shapes import check_shape
from zigma_pl.ops import mamba_mixer
from zigma_pl.ops.causal_conv1d import causal_conv1d
from zigma_pl.ops.mamba_mixer import ActivationMemory, MixerWeights
from zigma_pl.ops.norms import add_norm_modulate
from zigma_pl.ops.selective_scan import ScanBackend, selective_scan


class ScanDirection(nn.Module):
    """What one scan direction owns: the causal convolution and the parameters of the selective scan.

    Args:
        width: D, from which the rank of the step sizes follows.
        state_size: N, the states kept for each inner channel.
        expand: E = expand * D.
        conv_kernel: taps of the causal convolution.
        scan_backend: which implementation runs the scan; "auto" chooses by device.
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
        """Draw dt log-uniformly from [smallest, largest] and store softplus^-1(dt) as the bias (Mamba, section 3.6)."""
        bound = self.dt_rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        dt = torch.exp(torch.empty_like(self.dt_proj.bias).uniform_(math.log(smallest), math.log(largest)))
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def scan(self, x: Tensor, gate: Tensor, visit_order: Tensor | None = None) -> Tensor:
        """Convolve and scan x, (B, L, E), along visit_order, (L,) int32, and multiply by silu(gate): (B, L, E)."""
        deterministic = torch.are_deterministic_algorithms_enabled()  # as Trainer(deterministic=True) sets it
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


class MambaMixer(ScanDirection):
    """Mix tokens (B, L, D) -> (B, L, D) by a causal convolution and a selective scan along a visit order.

    The order is an index that both operations read and write rows through, so the output stays in raster order
    (Mamba, arXiv:2312.00752, section 3; ZigMa, arXiv:2403.13802, Eq. 3).

    Args:
        width, state_size, expand, conv_kernel, scan_backend: as of ScanDirection.
        activation_memory: "lean" keeps little for the backward pass on a GPU and recomputes the rest; "fast" keeps
            more.
    """

    def __init__(
        self,
        width: int,
        state_size: int = 16,
        expand: int = 2,
        conv_kernel: int = 4,
        scan_backend: ScanBackend = "auto",
        activation_memory: ActivationMemory = "lean",
    ) -> None:
        super().__init__(width, state_size, expand, conv_kernel, scan_backend)
        inner = expand * width
        self.activation_memory: ActivationMemory = activation_memory
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.out_proj = nn.Linear(inner, width, bias=False)
        self.sort_channels()

    @torch.no_grad()
    def sort_channels(self) -> None:
        """Put the inner channels in the order of their step sizes, which changes nothing but the order of sums.

        Channels that a GPU works off together then forget at about the same rate: where a long path is cut into chunks,
        the search for what a chunk leaves to the next ends early for all of them. The slowest, which take longest, come
        first.
        """
        order = self.dt_proj.bias.argsort()
        for rows in (self.conv_weight, self.conv_bias, self.dt_proj.weight, self.dt_proj.bias, self.A_log, self.D):
            rows.copy_(rows[order])
        for columns in (self.x_proj.weight, self.out_proj.weight):
            columns.copy_(columns[:, order])
        for half in self.in_proj.weight.chunk(2):
            half.copy_(half[order])

    def forward(self, tokens: Tensor, visit_order: Tensor | None = None) -> Tensor:
        """Mix tokens (B, L, D) along visit_order, (L,) int32, or along raster order when it is None."""
        check_shape("MambaMixer", "tokens", tokens, "(B, L, D)", None, None, self.in_proj.in_features)
        x, gate = self.in_proj(tokens).chunk(2, dim=-1)
        return self.out_proj(self.scan(x, gate, visit_order))

    def add_norm_mix(
        self,
        x: Tensor,
        branch: Tensor | None,
        branch_gate: Tensor | None,
        norm: nn.RMSNorm,
        shift: Tensor,
        scale: Tensor,
        visit_order: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Add a gated branch to x, and mix the normalised and modulated sum: the sum and the mixed tokens, (B, L, D).

        One op on a GPU. Arguments as of `ops.norms.add_norm_modulate`.
        """
        assert norm.eps is not None
        weights = MixerWeights(
            *(self.in_proj.weight, self.conv_weight, self.conv_bias, self.x_proj.weight, self.dt_proj.weight),
            *(self.dt_proj.bias, self.A_log, self.D, self.out_proj.weight),
        )
        if not mamba_mixer.runs_fused(x, shift, weights, self.scan_backend):
            x, tokens = add_norm_modulate(x, branch, branch_gate, norm.weight, shift, scale, epsilon=norm.eps)
            return x, self(tokens, visit_order)
        return mamba_mixer.add_norm_mix(
            *(x, branch, branch_gate, norm.weight, shift, scale, weights, visit_order),
            epsilon=norm.eps,
            activation_memory=self.activation_memory,
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )


class ParallelMixer(nn.Module):
    """Mix tokens (B, L, D) -> (B, L, D) along k visit orders at once, so at k times the scan's cost.

    The projections in and out are shared; each direction has its own ScanDirection, and their outputs are summed
    (ZigMa, arXiv:2403.13802, Fig. 4; with an order and its reverse, Vision Mamba, arXiv:2401.09417).

    Args:
        width: D.
        num_directions: k.
        state_size, expand, conv_kernel, scan_backend: as of ScanDirection.
    """

    def __init__(
        self,
        width: int,
        num_directions: int,
        state_size: int = 16,
        expand: int = 2,
        conv_kernel: int = 4,
        scan_backend: ScanBackend = "auto",
    ) -> None:
        super().__init__()
        inner = expand * width
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.directions = nn.ModuleList(
            ScanDirection(width, state_size, expand, conv_kernel, scan_backend) for _ in range(num_directions)
        )
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, tokens: Tensor, visit_orders: Tensor) -> Tensor:
        """Mix tokens (B, L, D) along visit_orders, (k, L) int32."""
        check_shape("ParallelMixer", "tokens", tokens, "(B, L, D)", None, None, self.in_proj.in_features)
        check_shape("ParallelMixer", "visit_orders", visit_orders, "(k, L)", len(self.directions), tokens.shape[1])
        x, gate = self.in_proj(tokens).chunk(2, dim=-1)
        scanned = (
            direction.scan(x, gate, visit_order)  # type: ignore[operator]  # a ScanDirection
            for direction, visit_order in zip(self.directions, visit_orders, strict=True)
        )
        return self.out_proj(functools.reduce(torch.add, scanned))
