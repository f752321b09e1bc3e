"""Orders of clips that follow time first."""

from dataclasses import dataclass
from typing import ClassVar, get_args

import numpy as np

from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import LARGEST_SEED, check_whole_numbers
from zigma_pl.scan.clips import time_first_order
from zigma_pl.scan.paths import NUM_SYMMETRIES, SchemeName
from zigma_pl.scan.schemes import Scheme


@dataclass(frozen=True)
class TimeFirst(Scheme):
    """The orders of a scheme for clips that visit all frames at a position before the next position.

    Without frames, for images, they are the orders of the scheme itself.

    Args:
        scheme: the scheme of the positions.
        seed: seed of the random orders; other schemes ignore it.
    """

    num_orders: ClassVar[int] = NUM_SYMMETRIES  # type: ignore[misc]  # an instance variable in the base class

    scheme: SchemeName = "zigzag"
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole_numbers("TimeFirst", least=0, most=LARGEST_SEED, seed=self.seed)
        if self.scheme not in get_args(SchemeName):
            raise UserError(
                f"TimeFirst.scheme: unknown {self.scheme!r}; choose one of {', '.join(get_args(SchemeName))}"
            )

    def order(self, index: int, height: int, width: int, num_frames: int | None = None) -> np.ndarray:
        """Return order `index`, 0 to 7, of the scheme, through the frames at each position."""
        if index >= NUM_SYMMETRIES:
            raise UserError(f"scan.indices: {self.scheme} has no order {index}: choose from 0 to {NUM_SYMMETRIES - 1}")
        return time_first_order(self.scheme, num_frames or 1, height, width, index=index, seed=self.seed)
