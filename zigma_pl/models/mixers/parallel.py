"""Several scan directions in one layer.

Axes: B batch, L tokens, D width, E inner width, N state.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.models.layers.shapes import check_shape
from zigma_pl.models.mixers.base import Mixer, MixerOptions, Visit
from zigma_pl.models.mixers.directions import Direction, DirectionOptions
from zigma_pl.models.mixers.mamba import Mamba, check_sizes
from zigma_pl.ops.selective_scan import ScanBackend


class ParallelMixer(Mixer):
    """Scans along k visit orders in parallel: (B, L, D) -> (B, L, D), at k times the cost of one scan.

    The directions share the input and output projections; each has its own convolution and scan, and their outputs are
    summed (ZigMa, arXiv:2403.13802, Fig. 4; Vision Mamba, arXiv:2401.09417, with an order and its reverse).

    Args:
        width: D.
        num_directions: k.
        direction: options of the scan of each direction.
    """

    def __init__(self, width: int, num_directions: int, direction: DirectionOptions = Mamba()) -> None:  # noqa: B008
        super().__init__()
        directions: list[Direction] = [direction.build_direction(width) for _ in range(num_directions)]
        self.in_proj = nn.Linear(width, directions[0].num_projected, bias=False)
        self.directions = nn.ModuleList(directions)
        self.norm = direction.build_norm(width)
        self.out_proj = nn.Linear(directions[0].inner_width, width, bias=False)

    def forward(self, tokens: Tensor, visit: Visit) -> Tensor:
        """Mix tokens (B, L, D) along the orders of the visit, (k, L)."""
        check_shape("ParallelMixer", "tokens", tokens, "(B, L, D)", None, None, self.in_proj.in_features)
        assert visit.order is not None
        num_directions, num_tokens = len(self.directions), tokens.shape[1]
        orders = visit.order[None] if visit.order.ndim == 1 else visit.order  # (L,) for a single direction
        check_shape("ParallelMixer", "visit.order", orders, "(k, L)", num_directions, num_tokens)
        projected = self.in_proj(tokens)
        scanned = (
            direction.scan(projected, visit_order)  # type: ignore[operator]  # a Direction
            for direction, visit_order in zip(self.directions, orders, strict=True)
        )
        return self.out_proj(self.norm(functools.reduce(torch.add, scanned)))


@dataclass(frozen=True)
class ParallelDirections(MixerOptions):
    """Scans along several orders in parallel, with summed outputs; each layer uses the next `num_directions` orders.

    Args:
        num_directions: k, number of orders that each layer scans along.
        state_size, expand, conv_kernel, scan_backend: for each direction; see `Mamba`.
        direction: options of each direction, such as those of Mamba-2; None for Mamba with the options above.
    """

    num_directions: int = 2
    state_size: int = 16
    expand: int = 2
    conv_kernel: int = 4
    scan_backend: ScanBackend = "auto"
    direction: DirectionOptions | None = None

    def __post_init__(self) -> None:
        check_whole_numbers("ParallelDirections", most=4096, num_directions=self.num_directions)
        check_sizes(self)
        for name in ("state_size", "expand", "conv_kernel"):
            if self.direction is not None and getattr(self, name) != getattr(type(self), name):
                raise UserError(f"ParallelDirections.{name} has no effect if direction is set: set it in direction")

    @property
    def num_orders(self) -> int:
        """Number of orders, one per direction."""
        return self.num_directions

    def build(self, width: int) -> ParallelMixer:
        """Build one layer."""
        own = Mamba(self.state_size, self.expand, self.conv_kernel, self.scan_backend)
        return ParallelMixer(width, self.num_directions, self.direction or own)
