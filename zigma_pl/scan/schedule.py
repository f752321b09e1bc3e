"""Which visit order each layer uses: layer i takes Omega_i = S_{i mod k}, one of k (ZigMa, arXiv:2403.13802)."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from zigma_pl.errors import UserError
from zigma_pl.ranges import LARGEST_SEED, check_whole_numbers
from zigma_pl.scan.clips import clip_order
from zigma_pl.scan.paths import NUM_SYMMETRIES, SchemeName, check_legacy_inverse, visit_order

MAX_RANDOM_ORDERS = 4096
MAX_PLACES = 2**28  # in all orders of a backbone together: 1 GiB

VideoScan = Literal["3d", "factorized"]
Axis = Literal["space", "time"]


@dataclass(frozen=True)
class ScanConfig:
    """The scan orders of a backbone.

    Args:
        scheme: sweep (straight rows and columns), zigzag (rows and columns to and fro), hilbert (a Hilbert curve for
            any rectangle) or random.
        num_orders: k, how many of the scheme's orders the layers take in turn: 1 to 8, in the sequence of
            zigma_pl.scan.paths; for random 1 to 4096. One raster order is sweep with num_orders 1.
        indices: which of the scheme's orders the layers take in turn, in place of the first k: each 0 to 7 or, for
            random, 0 or more; k is then their number. Of sweep and zigzag, [0, 6] are the rows from the top left and
            those from the bottom right.
        seed: seed of the random orders, 0 or more; the other schemes ignore it.
        video: how clips are scanned; pictures are not concerned. 3d: each layer visits all tokens of the clip along
            one of the k orders, each continued through the frames (zigma_pl.scan.clips). factorized: a layer scans
            either each frame by itself (space) or each place of the grid over the frames (time), as `plan` says.
        plan: what the layers of a factorized scan do, over and over; by default the paper's s, s, t. Layers of space
            take the k orders in turn, layers of time go forward and backward in turn.
        legacy_inverse: of hilbert on pictures, the scrambled orders of the official release, for its checkpoints: the
            inverse permutations of the curves.
    """

    scheme: SchemeName = "zigzag"
    num_orders: int = 8
    seed: int = 0
    video: VideoScan = "3d"
    plan: tuple[Axis, ...] = ("space", "space", "time")
    legacy_inverse: bool = False
    indices: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "plan", tuple(self.plan))  # a list comes from JSON
        if self.indices is not None:
            object.__setattr__(self, "indices", tuple(self.indices))
            object.__setattr__(self, "num_orders", len(self.indices))
        if self.scheme not in get_args(SchemeName):
            raise UserError(f"scan.scheme: unknown {self.scheme!r}; choose one of {', '.join(get_args(SchemeName))}")
        most = MAX_RANDOM_ORDERS if self.scheme == "random" else NUM_SYMMETRIES
        check_whole_numbers("scan", most=most, num_orders=self.num_orders)
        for index in self.indices or ():
            check_whole_numbers(
                "scan", least=0, most=LARGEST_SEED if self.scheme == "random" else most - 1, indices=index
            )
        check_whole_numbers("scan", least=0, most=LARGEST_SEED, seed=self.seed)
        if self.video not in get_args(VideoScan):
            raise UserError(f"scan.video: unknown {self.video!r}; choose one of {', '.join(get_args(VideoScan))}")
        if not self.plan or not set(self.plan) <= set(get_args(Axis)):
            raise UserError(f"scan.plan: give a list of space and time, such as [space, time], not {list(self.plan)}")
        if self.legacy_inverse:
            check_legacy_inverse(self.scheme)

    def orders(self, height: int, width: int, num_frames: int | None = None) -> list[np.ndarray]:
        """Return the k visit orders of a height x width token grid, each (height * width,) int32.

        With `num_frames` they are those of all tokens of a clip, (num_frames * height * width,), frame after frame.

        Raises:
            UserError: the scheme does not exist on this grid.
        """
        if self.num_orders * height * width * (num_frames or 1) > MAX_PLACES:
            raise UserError(f"scan.num_orders: {self.num_orders} orders of so many tokens do not fit: choose fewer")
        return [self._order(index, height, width, num_frames) for index in range(self.num_orders)]

    def order_index(self, layer: int) -> int:
        """Return which of the k orders a layer uses, 0 to k - 1; layers count from 0."""
        assert layer >= 0, layer
        return layer % self.num_orders

    def layer_order(self, layer: int, height: int, width: int) -> np.ndarray:
        """Return the visit order of a layer, (height * width,) int32."""
        return self._order(self.order_index(layer), height, width)

    def layer_axis(self, layer: int, num_frames: int | None) -> Axis | None:
        """Return what a layer's sequences run along: space, time, or None where all tokens are one sequence."""
        if num_frames is None or self.video == "3d":
            return None
        return self.plan[layer % len(self.plan)]

    def layer_orders(
        self, depth: int, height: int, width: int, num_frames: int | None = None
    ) -> tuple[list[np.ndarray], list[int]]:
        """Return the orders that `depth` layers share, and for each layer its index into them.

        They are the k orders of `orders`; of a factorized scan, the k orders of a frame, (height * width,), and then
        the two of its frames, (num_frames,), forward and backward. A backbone holds them once, as non-persistent
        buffers.
        """
        if num_frames is None or self.video == "3d":
            return self.orders(height, width, num_frames), [self.order_index(layer) for layer in range(depth)]
        axes = [self.layer_axis(layer, num_frames) for layer in range(depth)]
        forward = np.arange(num_frames, dtype=np.int32)
        turns = [axes[:layer].count(axis) for layer, axis in enumerate(axes)]  # earlier layers of the same axis
        indices = [
            self.order_index(turn) if axis == "space" else self.num_orders + turn % 2
            for axis, turn in zip(axes, turns, strict=True)
        ]
        return [*self.orders(height, width), forward, forward[::-1].copy()], indices

    def _order(self, index: int, height: int, width: int, num_frames: int | None = None) -> np.ndarray:
        index = index if self.indices is None else self.indices[index]
        if num_frames is None:
            return visit_order(
                self.scheme, height, width, index=index, seed=self.seed, legacy_inverse=self.legacy_inverse
            )
        if self.legacy_inverse:
            raise UserError("scan.legacy_inverse is for the image checkpoints of the official release, not for clips")
        return clip_order(self.scheme, num_frames, height, width, index=index, seed=self.seed)
