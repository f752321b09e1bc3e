"""The mixer of Mamba-2, whose scan has one decay per head and can be computed with matrix products.

Axes: B batch, L tokens, D width, E inner width, H heads, P width of a head, G groups, N state.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.models.layers.replaceable import is_product, is_replaceable
from zigma_pl.models.layers.rms_norm import RMSNorm
from zigma_pl.models.layers.shapes import check_shape
from zigma_pl.models.mixers.base import ActivationMemory, Mixer, Visit
from zigma_pl.models.mixers.directions import Direction, DirectionOptions
from zigma_pl.models.mixers.mamba import check_sizes
from zigma_pl.ops.causal_conv1d import causal_conv1d
from zigma_pl.ops.rms_norm import rms_norm, scale_columns
from zigma_pl.ops.rows import UnscaledRows
from zigma_pl.ops.ssd import SsdBackend, convolved, ssd
from zigma_pl.ops.ssd.layout import kept_state_bytes
from zigma_pl.ops.ssd.sizes import Sizes

HEAD_DIM = 64  # default width of a head


class SsdDirection(Direction):
    """The causal convolution and the scan (SSD) of one direction, with their parameters.

    Args:
        inner_width: E, a multiple of head_dim.
        head_dim: P; each of the H = E / P heads has one decay rate and one step size per token.
        state_size: N, number of states per inner channel.
        num_groups: G; the heads of a group share B and C.
        conv_kernel: taps of the causal convolution over x, B and C.
        scan_backend: implementation of the scan; "auto" chooses by device.
    """

    parameter_roles: ClassVar[dict[str, str]] = {
        "A_log": "scan",
        "D": "scan",
        "dt_bias": "scan",
        "conv1d.weight": "convolution",
    }

    def __init__(
        self,
        inner_width: int,
        head_dim: int = 64,
        state_size: int = 64,
        num_groups: int = 1,
        conv_kernel: int = 4,
        scan_backend: SsdBackend = "auto",
    ) -> None:
        super().__init__()
        self.inner_width = inner_width
        self.sizes = Sizes(inner_width // head_dim, head_dim, num_groups, state_size)
        self.num_projected = sum(self.sizes.parts)
        _, num_convolved, num_heads = self.sizes.parts
        self.scan_backend: SsdBackend = scan_backend
        # The module has the names and shapes of mamba_ssm's Mamba2; its parameters are used by another implementation.
        self.conv1d = nn.Conv1d(num_convolved, num_convolved, conv_kernel, groups=num_convolved)
        self.dt_bias = nn.Parameter(_initial_step_sizes(num_heads))
        self.A_log = nn.Parameter(torch.empty(num_heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(num_heads))

    def scan(self, projected: Tensor, visit_order: Tensor | None = None) -> Tensor:
        """Convolve and scan along visit_order, (L,), and multiply by silu(gate): (B, L, num_projected) -> (B, L, E)."""
        return self.scan_and_square(projected, visit_order, squared=False)[0]

    def scan_and_square(
        self, projected: Tensor, visit_order: Tensor | None, squared: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Run `scan`, and with `squared` also return mean squares if the kernels compute them.

        Returns: the result of `scan`, and for each row the mean square as parts that are to be added, (B, L, K).
        """
        deterministic = torch.are_deterministic_algorithms_enabled()  # set by Trainer(deterministic=True)
        weight, bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
        if convolved.runs_fused(projected, weight, visit_order, self.sizes, self.scan_backend):
            assert bias is not None
            parameters = (weight, bias, self.A_log, self.D, self.dt_bias)
            options = (visit_order, self.sizes, deterministic, squared)
            scanned, squares = convolved.convolve_and_scan(projected, *parameters, *options)
            return scanned, squares if squared else None
        gate, rows, dt = projected.split(self.sizes.parts, dim=-1)
        rows = causal_conv1d(
            rows, weight, bias, visit_order=visit_order, activation="silu", deterministic=deterministic
        )
        x, B, C = self.sizes.split(rows)
        y = ssd(
            x,
            dt,
            -torch.exp(self.A_log.float()),
            B,
            C,
            skip=self.D,
            gate=self.sizes.as_heads(gate),
            dt_bias=self.dt_bias,
            visit_order=visit_order,
            backend=self.scan_backend,
            deterministic=deterministic,
        )
        return y.flatten(2), None


def _initial_step_sizes(num_heads: int, smallest: float = 1e-3, largest: float = 0.1) -> Tensor:
    """Draw step sizes log-uniformly from [smallest, largest], and return softplus^-1 of them, (H,)."""
    steps = torch.exp(torch.empty(num_heads).uniform_(math.log(smallest), math.log(largest)))
    return steps + torch.log(-torch.expm1(-steps))


class GroupRMSNorm(RMSNorm):
    """RMSNorm of each of `num_groups` equal parts of (B, L, width), with one weight per channel."""

    def __init__(self, width: int, num_groups: int = 1, epsilon: float = 1e-5) -> None:
        super().__init__(width, eps=epsilon)
        self.num_groups = num_groups

    def forward(self, rows: Tensor) -> Tensor:
        """Normalise (B, L, width)."""
        assert self.eps is not None
        return rms_norm(rows, self.weight, self.eps, self.num_groups)


class Mamba2Mixer(SsdDirection, Mixer):
    """The mixer of Mamba-2 (arXiv:2405.21060, section 7): (B, L, D) -> (B, L, D).

    One projection gives the gate, x, B, C and the step sizes; x, B and C are convolved; the gated output of the scan is
    normalised and projected. Parameters have the names and shapes of `mamba_ssm.Mamba2`, so that `load_state_dict`
    loads its weights. On a GPU, the weight of the norm is multiplied into that of the projection, and the factors of
    the rows are applied afterwards, if possible by the norm of the next block (`UnscaledRows`).

    Rows are taken in visit order, since the norms before and after the mixer reorder them at no cost.

    Args:
        width: D.
        inner_width, head_dim, state_size, num_groups, conv_kernel, scan_backend: see `SsdDirection`.
        activation_memory: on a GPU, "lean" recomputes the input projection, convolution, scan and norm in the backward
            pass; "fast" stores their outputs; "auto" is "lean" until `store_more_activations` is called.
    """

    takes_rows_in_visit_order = True
    scaled_projection: Tensor | None = None  # see `scaled_weights`

    def __init__(
        self,
        width: int,
        inner_width: int,
        head_dim: int = 64,
        state_size: int = 64,
        num_groups: int = 1,
        conv_kernel: int = 4,
        scan_backend: SsdBackend = "auto",
        activation_memory: ActivationMemory = "auto",
    ) -> None:
        super().__init__(inner_width, head_dim, state_size, num_groups, conv_kernel, scan_backend)
        self.activation_memory = activation_memory
        self.in_proj = nn.Linear(width, self.num_projected, bias=False)
        self.norm = GroupRMSNorm(inner_width, num_groups)
        self.out_proj = nn.Linear(inner_width, width, bias=False)

    def forward(  # type: ignore[override]  # a tensor unless `unscaled`
        self, tokens: Tensor, visit: Visit, unscaled: bool = False
    ) -> Tensor | UnscaledRows:
        """Mix tokens (B, L, D) in the order in which they are stored; with `unscaled`, may return `UnscaledRows`."""
        check_shape("Mamba2Mixer", "tokens", tokens, "(B, L, D)", None, None, self.in_proj.in_features)
        arguments = (tokens, visit.order, self._is_replaceable(), self.scaled_projection)
        if self._recomputes(tokens):
            # stops before it would compute the output projection again
            mixed = checkpoint(self._mix, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            mixed = self._mix(*arguments)
        return mixed.scaled() if isinstance(mixed, UnscaledRows) and not unscaled else mixed

    def mix_unscaled(self, tokens: Tensor, visit: Visit) -> Tensor | UnscaledRows:
        """Run `forward` without the norm's factors of the rows if the kernels support it."""
        if not is_replaceable(self, Mamba2Mixer):  # another `forward`, or hooks, which expect a tensor
            return super().mix_unscaled(tokens, visit)
        mixed: Tensor | UnscaledRows = self(tokens, visit, unscaled=True)
        return mixed

    def _mix(
        self, tokens: Tensor, visit_order: Tensor | None, replaceable: bool, scaled_projection: Tensor | None
    ) -> Tensor | UnscaledRows:
        projected = self.in_proj(tokens)
        # The range of float16 is too small for rows without the factors of the norm.
        if not replaceable or projected.dtype == torch.float16:
            return self.out_proj(self.norm(self.scan(projected, visit_order)))
        scanned, squares = self.scan_and_square(projected, visit_order, squared=True)
        if squares is None:
            return self.out_proj(self.norm(scanned))
        assert self.norm.eps is not None
        if scaled_projection is None:
            scaled_projection = scale_columns(self.out_proj.weight, self.norm.weight, scanned.dtype)
        return UnscaledRows(linear(scanned, scaled_projection), squares, self.norm.eps)

    def scaled_weights(self, dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the weights of the output projection and of the norm, if the kernels multiply them."""
        if dtype == torch.float16 or not self._is_replaceable():
            return {}
        return {"scaled_projection": (self.out_proj.weight, self.norm.weight)}

    def _is_replaceable(self) -> bool:
        """Return whether scan, norm and projection are those of this class, so that kernels may compute all of them."""
        return (
            type(self).scan is SsdDirection.scan
            and is_replaceable(self.norm, GroupRMSNorm)
            and self.norm.num_groups == 1
            and is_product(self.out_proj)
        )

    def _recomputes(self, tokens: Tensor) -> bool:
        """Return whether the backward pass recomputes all but the output projection; compiled code never does."""
        is_lean = self.activation_memory != "fast" and not torch.compiler.is_compiling()
        return is_lean and tokens.is_cuda and torch.is_grad_enabled()

    def extra_activation_bytes(self, num_tokens: int, itemsize: int) -> int:
        """Return the bytes of the outputs of projection, convolution, scan and norm, and of the states of the scan.

        The output of the norm is only stored if its factors of the rows are not applied after the projection.
        """
        if self.activation_memory != "auto":
            return 0
        numbers = self.num_projected + self.sizes.parts[1] + 2 * self.inner_width
        states = self.inner_width * kept_state_bytes(self.sizes.num_states, itemsize)
        return round(num_tokens * (numbers * itemsize + states))


@dataclass(frozen=True)
class Mamba2(DirectionOptions):
    """Mamba-2 (arXiv:2405.21060): a causal convolution and a scan along one order, with one decay rate per head.

    Args:
        state_size: N, number of states per inner channel of the scan.
        head_dim: width of a head; must divide the inner width. None for 64, or for the largest power of two that
            divides an inner width which 64 does not. On a GPU, a number of heads that is a multiple of 8 is fastest.
        expand: inner width divided by D.
        num_groups: number of groups of heads that share B and C; must divide the number of heads.
        conv_kernel: taps of the causal convolution.
        inner_width: inner width, in place of expand * D; for example for layers with as many parameters as another
            mixer's.
        scan_backend: implementation of the scan; "auto" chooses by device.
        activation_memory: on a GPU, "lean" recomputes the outputs of input projection, convolution, scan and norm in
            the backward pass, "fast" stores them, and "auto" stores them if the memory of the GPU suffices, which `fit`
            finds out in its first step. `ParallelDirections` always stores them.
    """

    state_size: int = 64
    head_dim: int | None = None
    expand: int = 2
    num_groups: int = 1
    conv_kernel: int = 4
    inner_width: int | None = None
    scan_backend: SsdBackend = "auto"
    activation_memory: ActivationMemory = "auto"

    def __post_init__(self) -> None:
        check_sizes(self)
        check_whole_numbers("Mamba2", most=4096, head_dim=self.head_dim, num_groups=self.num_groups)
        check_whole_numbers("Mamba2", most=2**20, inner_width=self.inner_width)

    def build(self, width: int) -> Mamba2Mixer:
        """Build one layer."""
        return Mamba2Mixer(width, *self._scan_options(width), self.activation_memory)

    def build_direction(self, width: int) -> SsdDirection:
        """Build the scan of one direction."""
        return SsdDirection(*self._scan_options(width))

    def build_norm(self, width: int) -> GroupRMSNorm:
        """Build the norm of the gated outputs."""
        return GroupRMSNorm(self._scan_options(width)[0], self.num_groups)

    def _scan_options(self, width: int) -> tuple[int, int, int, int, int, SsdBackend]:
        """Return the arguments of `SsdDirection`; UserError if heads or groups do not fit."""
        inner = self.expand * width if self.inner_width is None else self.inner_width
        head_dim = math.gcd(inner, HEAD_DIM) if self.head_dim is None else self.head_dim
        if inner % head_dim:
            raise UserError(f"Mamba2.head_dim: {head_dim} does not divide the inner width {inner}: set it to a divisor")
        if inner // head_dim % self.num_groups:
            raise UserError(
                f"Mamba2.num_groups: {self.num_groups} does not divide the {inner // head_dim} heads: set a divisor"
            )
        return inner, head_dim, self.state_size, self.num_groups, self.conv_kernel, self.scan_backend
