"""Which visit order each layer uses: layer i takes Omega_i = S_{i mod k}, one of k (ZigMa, arXiv:2403.13802)."""

from dataclasses import dataclass
from typing import get_args

import numpy as np

from zigma_pl.errors import UserError
from zigma_pl.scan.paths import NUM_SYMMETRIES, SchemeName, visit_order


@dataclass(frozen=True)
class ScanConfig:
    """The scan orders of a backbone.

    Args:
        scheme: sweep (straight rows and columns), zigzag (rows and columns to and fro), hilbert (a Hilbert curve for
            any rectangle), legacy_hilbert (the official release's scrambled Hilbert orders, for its checkpoints) or
            random.
        num_orders: k, how many of the scheme's orders the layers take in turn: 1 to 8, in the sequence of
            zigma_pl.scan.paths; for random any number from 1 on. One raster order is sweep with num_orders 1.
        seed: seed of the random orders, 0 or more; the other schemes ignore it.
    """

    scheme: SchemeName = "zigzag"
    num_orders: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.scheme not in get_args(SchemeName):
            raise UserError(f"scan.scheme: unknown {self.scheme!r}; choose one of {', '.join(get_args(SchemeName))}")
        allowed = "1 or more" if self.scheme == "random" else f"1 to {NUM_SYMMETRIES}"
        if self.num_orders < 1 or (self.scheme != "random" and self.num_orders > NUM_SYMMETRIES):
            raise UserError(f"scan.num_orders: {self.scheme} allows {allowed} orders, not {self.num_orders}")
        if self.seed < 0:
            raise UserError(f"scan.seed: must be 0 or more, not {self.seed}")

    def orders(self, height: int, width: int) -> list[np.ndarray]:
        """Return the k visit orders of a height x width token grid, each (height * width,) int32.

        Raises:
            UserError: the scheme does not exist on this grid.
        """
        return [self._order(index, height, width) for index in range(self.num_orders)]

    def order_index(self, layer: int) -> int:
        """Return which of the k orders a layer uses, 0 to k - 1; layers count from 0."""
        assert layer >= 0, layer
        return layer % self.num_orders

    def layer_order(self, layer: int, height: int, width: int) -> np.ndarray:
        """Return the visit order of a layer, (height * width,) int32."""
        return self._order(self.order_index(layer), height, width)

    def layer_orders(self, depth: int, height: int, width: int) -> tuple[list[np.ndarray], list[int]]:
        """Return the k orders, and for each of `depth` layers its index into them.

        A backbone holds the k orders once, as non-persistent buffers, and lets its layers share them.
        """
        return self.orders(height, width), [self.order_index(layer) for layer in range(depth)]

    def _order(self, index: int, height: int, width: int) -> np.ndarray:
        return visit_order(self.scheme, height, width, index=index, seed=self.seed)
