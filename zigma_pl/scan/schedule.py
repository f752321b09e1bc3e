"""Assignment of visit orders to layers: layer i uses Omega_i = S_{i mod k}, one of k (ZigMa, arXiv:2403.13802)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import LARGEST_SEED, check_whole_numbers
from zigma_pl.scan.clips import clip_order
from zigma_pl.scan.paths import NUM_SYMMETRIES, SchemeName, check_legacy_inverse, visit_order
from zigma_pl.scan.schemes import Scheme

MAX_RANDOM_ORDERS = 4096
MAX_ORDER_ENTRIES = 2**28  # of all orders of a backbone together: 1 GiB

VideoScan = Literal["3d", "factorized"]
Axis = Literal["space", "time"]


class LayerOrder(NamedTuple):
    """The scan of one layer.

    axis: axis along which its sequences run, None if all tokens are one sequence.
    order: index of the shared order that it uses, None if it ignores orders.
    """

    axis: Axis | None = None
    order: int | None = None


@dataclass(frozen=True)
class ScanConfig:
    """The scan orders of a backbone.

    Args:
        scheme: sweep (rows or columns in one direction), zigzag (rows or columns in alternating directions), hilbert
            (a Hilbert curve for any rectangle), random, or another one of zigma_pl.scan.shapes, where all are
            described; or a `Scheme` by class path: your own, or zigma_pl.scan.OrdersFile, which reads orders from a
            file.
        num_orders: k, the number of the scheme's orders that the layers cycle through: 1 to 8, numbered as in
            zigma_pl.scan.shapes; 1 to 4096 for random. Plain raster order is sweep with num_orders 1.
        indices: indices of the orders that the layers cycle through, instead of the first k: 0 to 7, or 0 or more for
            random; k is then the number of indices. For sweep and zigzag, [0, 6] are the rows from the top left and
            the rows from the bottom right.
        seed: seed of the random orders, 0 or more; other schemes ignore it.
        video: how clips are scanned; no effect on images. 3d: each layer visits all tokens of the clip along one of the
            k orders, continued through the frames (zigma_pl.scan.clips). factorized: each layer scans either within
            each frame (space) or over the frames at each grid position (time), according to `plan`.
        plan: axes of the layers of a factorized scan, repeated; by default space, space, time as in the paper. Space
            layers cycle through the k orders, time layers alternate between forward and backward.
        legacy_inverse: for hilbert on images, use the scrambled orders of the official release (the inverse
            permutations of the curves), which its checkpoints need.
        both_ways: follow each of the k orders by its reverse, so that layers cycle through 2 k orders.
    """

    scheme: SchemeName | Scheme = "zigzag"
    num_orders: int = 8
    seed: int = 0
    video: VideoScan = "3d"
    plan: tuple[Axis, ...] = ("space", "space", "time")
    legacy_inverse: bool = False
    indices: tuple[int, ...] | None = None
    both_ways: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "plan", tuple(self.plan))  # a list comes from JSON
        if self.indices is not None:
            object.__setattr__(self, "indices", tuple(self.indices))
            object.__setattr__(self, "num_orders", len(self.indices))
        is_own = isinstance(self.scheme, Scheme)
        if isinstance(self.scheme, Scheme) and self.scheme.num_orders is not None and self.indices is None:
            object.__setattr__(self, "num_orders", min(self.num_orders, self.scheme.num_orders))
        if not is_own and self.scheme not in get_args(SchemeName):
            raise UserError(f"scan.scheme: unknown {self.scheme!r}; choose one of {', '.join(get_args(SchemeName))}")
        has_any = is_own or self.scheme == "random"
        most = MAX_RANDOM_ORDERS if has_any else NUM_SYMMETRIES
        check_whole_numbers("scan", most=most, num_orders=self.num_orders)
        for index in self.indices or ():
            check_whole_numbers("scan", least=0, most=LARGEST_SEED if has_any else most - 1, indices=index)
        check_whole_numbers("scan", least=0, most=LARGEST_SEED, seed=self.seed)
        if self.video not in get_args(VideoScan):
            raise UserError(f"scan.video: unknown {self.video!r}; choose one of {', '.join(get_args(VideoScan))}")
        if not self.plan or not set(self.plan) <= set(get_args(Axis)):
            raise UserError(f"scan.plan: expected a list such as [space, time], got {list(self.plan)}")
        if self.legacy_inverse:
            check_legacy_inverse(self.scheme)

    @property
    def period(self) -> int:
        """Number of orders that layers cycle through."""
        return self.num_orders * (2 if self.both_ways else 1)

    def orders(self, height: int, width: int, num_frames: int | None = None) -> list[np.ndarray]:
        """Return the orders that layers cycle through on a height x width token grid, each (height * width,) int32.

        With `num_frames` the orders cover all tokens of a clip, (num_frames * height * width,).

        Raises:
            UserError: the scheme is not defined on this grid, or the orders are too large.
        """
        num_tokens = height * width * (num_frames or 1)
        if self.period * num_tokens > MAX_ORDER_ENTRIES:
            raise UserError(f"scan.num_orders: {self.period} orders of {num_tokens:,} tokens are too large: use fewer")
        orders = [self._order(index, height, width, num_frames) for index in range(self.num_orders)]
        return [each for order in orders for each in (order, order[::-1].copy())] if self.both_ways else orders

    def layer_orders(
        self, num_orders_per_layer: Sequence[int], height: int, width: int, num_frames: int | None = None
    ) -> tuple[list[np.ndarray], list[LayerOrder]]:
        """Return the distinct orders of all layers, and for each layer its axis and its index into them.

        Each layer uses the orders that follow those of the previous layers. Layers that use no order are skipped, so
        that the others still use every order; they process all tokens of a clip at once.

        Args:
            num_orders_per_layer: how many orders each layer uses.
            height, width, num_frames: see `orders`.

        Returns: the orders, each (L,) for layers that use one, (k, L) for layers that use k at once. L is the number of
            tokens of an image or clip, height * width * num_frames; in a factorized scan it is height * width for space
            layers and num_frames for time layers. Backbones store each order once, as a non-persistent buffer.
        """
        if not any(num_orders_per_layer):
            return [], [LayerOrder()] * len(num_orders_per_layer)
        by_axis = self._orders_by_axis(height, width, num_frames)
        num_used: dict[Axis | None, int] = dict.fromkeys(by_axis, 0)
        shared: dict[tuple[Axis | None, tuple[int, ...]], np.ndarray] = {}
        layers: list[LayerOrder] = []
        for num_orders in num_orders_per_layer:
            if not num_orders:
                layers.append(LayerOrder())
                continue
            num_before = sum(layer.order is not None for layer in layers)
            axis = self.plan[num_before % len(self.plan)] if None not in by_axis else None
            orders, first = by_axis[axis], num_used[axis]
            chosen = tuple(index % len(orders) for index in range(first, first + num_orders))
            num_used[axis] += num_orders
            if (axis, chosen) not in shared:
                stacked = np.stack([orders[index] for index in chosen])
                shared[axis, chosen] = stacked if num_orders > 1 else stacked[0]
            layers.append(LayerOrder(axis, list(shared).index((axis, chosen))))
        return list(shared.values()), layers

    def _orders_by_axis(self, height: int, width: int, num_frames: int | None) -> dict[Axis | None, list[np.ndarray]]:
        """Return the orders that layers of each axis cycle through."""
        if num_frames is None or self.video == "3d":
            return {None: self.orders(height, width, num_frames)}
        forward = np.arange(num_frames, dtype=np.int32)
        return {"space": self.orders(height, width), "time": [forward, forward[::-1].copy()]}

    def _order(self, index: int, height: int, width: int, num_frames: int | None = None) -> np.ndarray:
        index = index if self.indices is None else self.indices[index]
        if isinstance(self.scheme, Scheme):
            return self.scheme.checked_order(index, height, width, num_frames)
        if num_frames is None:
            return visit_order(
                self.scheme, height, width, index=index, seed=self.seed, legacy_inverse=self.legacy_inverse
            )
        if self.legacy_inverse:
            raise UserError("scan.legacy_inverse: exists only for images, not for clips: leave the option out")
        return clip_order(self.scheme, num_frames, height, width, index=index, seed=self.seed)
