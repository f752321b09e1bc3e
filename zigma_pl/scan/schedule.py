"""Which visit order each layer uses: layer i takes Omega_i = S_{i mod k}, one of k (ZigMa, arXiv:2403.13802)."""

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
MAX_PLACES = 2**28  # in all orders of a backbone together: 1 GiB

VideoScan = Literal["3d", "factorized"]
Axis = Literal["space", "time"]


class LayerOrder(NamedTuple):
    """What a layer scans along.

    axis: what its sequences run along, None where all tokens are one sequence.
    order: which of the shared orders it takes, None where it ignores orders.
    """

    axis: Axis | None = None
    order: int | None = None


@dataclass(frozen=True)
class ScanConfig:
    """The scan orders of a backbone.

    Args:
        scheme: sweep (straight rows and columns), zigzag (rows and columns to and fro), hilbert (a Hilbert curve for
            any rectangle) or random; or a `Scheme` by class path: one of your own, or zigma_pl.scan.OrdersFile, which
            reads orders from a file.
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
        both_ways: after each of the k orders comes its reverse, so that layers take 2 k orders in turn.
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
            raise UserError(f"scan.plan: give a list of space and time, such as [space, time], not {list(self.plan)}")
        if self.legacy_inverse:
            check_legacy_inverse(self.scheme)

    @property
    def period(self) -> int:
        """How many orders layers take in turn."""
        return self.num_orders * (2 if self.both_ways else 1)

    def orders(self, height: int, width: int, num_frames: int | None = None) -> list[np.ndarray]:
        """Return the orders of a height x width token grid that layers take in turn, each (height * width,) int32.

        With `num_frames` they are those of all tokens of a clip, (num_frames * height * width,), frame after frame.

        Raises:
            UserError: the scheme does not exist on this grid.
        """
        if self.period * height * width * (num_frames or 1) > MAX_PLACES:
            raise UserError(f"scan.num_orders: {self.period} orders of so many tokens do not fit: choose fewer")
        orders = [self._order(index, height, width, num_frames) for index in range(self.num_orders)]
        return [way for order in orders for way in (order, order[::-1].copy())] if self.both_ways else orders

    def layer_orders(
        self, num_taken: Sequence[int], height: int, width: int, num_frames: int | None = None
    ) -> tuple[list[np.ndarray], list[LayerOrder]]:
        """Return the orders that layers share, and for each layer its axis and its index into them.

        A layer takes the next orders after those of the layers before it. A layer that takes none does not count, so
        that the others still take every order; it sees all tokens of a clip at once.

        Args:
            num_taken: how many orders each layer takes.
            height, width, num_frames: as of `orders`.

        Returns: the orders, each (L,) for layers that take one, (k, L) for those that take k at once. L is the number
            of tokens of a picture or clip, height * width * num_frames; of a factorized scan height * width in layers
            of space, num_frames in layers of time. A backbone holds them once, as non-persistent buffers.
        """
        if not any(num_taken):
            return [], [LayerOrder()] * len(num_taken)
        turns = self._turns(height, width, num_frames)
        taken_before: dict[Axis | None, int] = dict.fromkeys(turns, 0)
        shared: dict[tuple[Axis | None, tuple[int, ...]], np.ndarray] = {}
        layers: list[LayerOrder] = []
        for number in num_taken:
            if not number:
                layers.append(LayerOrder())
                continue
            num_before = sum(layer.order is not None for layer in layers)
            axis = self.plan[num_before % len(self.plan)] if None not in turns else None
            orders, first = turns[axis], taken_before[axis]
            chosen = tuple(index % len(orders) for index in range(first, first + number))
            taken_before[axis] += number
            if (axis, chosen) not in shared:
                stacked = np.stack([orders[index] for index in chosen])
                shared[axis, chosen] = stacked if number > 1 else stacked[0]
            layers.append(LayerOrder(axis, list(shared).index((axis, chosen))))
        return list(shared.values()), layers

    def _turns(self, height: int, width: int, num_frames: int | None) -> dict[Axis | None, list[np.ndarray]]:
        """Return the orders that layers of each axis take in turn."""
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
            raise UserError("scan.legacy_inverse is for the image checkpoints of the official release, not for clips")
        return clip_order(self.scheme, num_frames, height, width, index=index, seed=self.seed)
