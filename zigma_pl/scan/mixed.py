"""Sets of orders from several schemes."""

from dataclasses import dataclass

import numpy as np

from zigma_pl.core.errors import UserError
from zigma_pl.scan.schedule import ScanConfig
from zigma_pl.scan.schemes import Scheme


@dataclass(frozen=True)
class MixedOrders(Scheme):
    """The orders of several scans, one after the other.

    Args:
        parts: the scans; usually each selects some orders of a scheme with `indices`. Only the orders are used, so
            `video` and `plan` have no effect.
    """

    parts: tuple[ScanConfig, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))  # a list comes from JSON

    @property
    def num_orders(self) -> int:  # type: ignore[override]  # an attribute in the base class
        """Number of orders of all parts."""
        return sum(part.period for part in self.parts)

    def order(self, index: int, height: int, width: int, num_frames: int | None = None) -> np.ndarray:
        """Return an order of one of the parts."""
        first = 0
        for part in self.parts:
            if index < first + part.period:
                return part.orders(height, width, num_frames)[index - first]
            first += part.period
        raise UserError(f"scan.indices: the parts have no order {index}: choose from 0 to {first - 1}")
