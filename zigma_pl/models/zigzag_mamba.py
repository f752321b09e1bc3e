"""A standalone zigzag Mamba layer for use in other networks.

Axes: B batch, L tokens, D width.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.models.layers.shapes import check_shape
from zigma_pl.models.mixers import Mamba, MixerOptions, Visit
from zigma_pl.ops.rows import inverse_order
from zigma_pl.scan.schedule import ScanConfig


class ZigzagMamba(nn.Module):
    """Mix the tokens of a 2-D grid along one zigzag: (B, L, D) -> (B, L, D), with input and output in raster order.

    Stack layers with order_index 0, 1, 2, ... for ZigMa's Omega_i = S_{i mod k} (arXiv:2403.13802, section 3.2).

    Args:
        width: D.
        order_index: i, index of the order that this layer uses, modulo k.
        scan: family and number k of the orders.
        mixer: options of a mixer that uses a single order.
    """

    def __init__(
        self,
        width: int,
        order_index: int = 0,
        scan: ScanConfig = ScanConfig(),  # noqa: B008  a frozen dataclass
        mixer: MixerOptions = Mamba(),  # noqa: B008  a frozen dataclass
    ) -> None:
        check_whole_numbers("ZigzagMamba", most=65_536, width=width)
        check_whole_numbers("ZigzagMamba", least=0, order_index=order_index)
        super().__init__()
        self.width = width
        self.order_index = order_index
        self.scan = scan
        self.mixer = mixer.build(width)

    def forward(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Mix tokens (B, L, D) of a (height, width) grid, which is square if `grid` is None.

        Raises: UserError for tokens of another shape, if L is not height * width, or not a square if `grid` is None.
        """
        check_shape("ZigzagMamba", "tokens", tokens, "(B, L, D)", None, None, self.width)
        num_tokens = tokens.shape[1]
        height, width = grid if grid is not None else (math.isqrt(num_tokens),) * 2
        if height * width != num_tokens:
            raise UserError(f"{num_tokens} tokens do not fill a {height} x {width} grid: pass grid=(height, width)")
        return self.mixer.mix(tokens, _visit(self.scan, self.order_index, height, width, tokens.device))


@lru_cache(maxsize=64)
def _visit(scan: ScanConfig, order_index: int, height: int, width: int, device: torch.device) -> Visit:
    orders = scan.orders(height, width)
    order = torch.as_tensor(orders[order_index % len(orders)], dtype=torch.int32, device=device)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    positions = torch.stack([rows.flatten(), columns.flatten()], dim=-1).float().to(device)
    return Visit(positions, order, inverse_order(order).int())
