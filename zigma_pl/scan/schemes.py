"""Custom visit orders: computed by a class or read from a file."""

import hashlib
import io
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from zigma_pl.core.class_paths import Configurable
from zigma_pl.core.errors import UserError
from zigma_pl.core.files import read_regular
from zigma_pl.core.records import one_line
from zigma_pl.scan.paths import is_permutation

MAX_FILE_BYTES = 2**30


class Scheme(Configurable, ABC):
    """A family of visit orders, chosen by class path in `scan.scheme`; subclasses implement `order`.

    Attributes:
        num_orders: number of orders in the family; None if it is unlimited.
    """

    num_orders: int | None = None

    @abstractmethod
    def order(self, index: int, height: int, width: int, num_frames: int | None = None) -> np.ndarray:
        """Return order `index` (from 0) of a height x width token grid: the raster index of the token at each step.

        Args:
            index: which order of the family.
            height, width: size of the token grid.
            num_frames: None for an image, whose order has height * width entries; for a clip the order has
                num_frames * height * width entries, with raster indices counted frame after frame.
        """

    def checked_order(self, index: int, height: int, width: int, num_frames: int | None = None) -> np.ndarray:
        """Return an order as int32.

        Raises:
            UserError: the order is not a permutation of the tokens.
        """
        num_tokens = height * width * (num_frames or 1)
        order = np.asarray(self.order(index, height, width, num_frames))
        if order.dtype.kind not in "iu" or order.shape != (num_tokens,) or not is_permutation(order):
            frames = "" if num_frames is None else f"{num_frames} x "
            raise UserError(
                f"scan.scheme: order {index} of {type(self).__name__} ({order.dtype}, shape {order.shape}) is not a "
                f"permutation of 0 to {num_tokens - 1}, the tokens of a {frames}{height} x {width} grid"
            )
        return order.astype(np.int32)


@dataclass(frozen=True)
class OrdersFile(Scheme):
    """Visit orders from a file, for token grids of one size.

    Args:
        path: a .npy file with integers of shape (k, L) or (L,), or a .json file with the same as nested lists. Row i is
            order i: the raster index, from 0, of the token at each step.
        sha256: expected hash of the file's content; None to use the file as found. The hash is saved with a model, so
            that a file changed after training is rejected.
    """

    path: str
    sha256: str | None = None
    _orders: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        content = self._content()
        found = hashlib.sha256(content).hexdigest()
        if self.sha256 not in (None, found):
            raise UserError(
                f"scan.scheme: {self.path} has changed (SHA-256 {found}, expected {self.sha256}): restore the file"
            )
        object.__setattr__(self, "sha256", found)
        object.__setattr__(self, "_orders", self._parsed(content))

    @property
    def num_orders(self) -> int:  # type: ignore[override]  # an attribute in the base class
        """Number of orders in the file."""
        return len(self._orders)

    def order(self, index: int, height: int, width: int, num_frames: int | None = None) -> np.ndarray:
        """Return row `index` of the file."""
        if index >= len(self._orders):
            raise UserError(f"scan.indices: {self.path} has no order {index}: choose from 0 to {len(self._orders) - 1}")
        row: np.ndarray = self._orders[index]
        return row

    def _content(self) -> bytes:
        try:
            if Path(self.path).stat().st_size > MAX_FILE_BYTES:
                raise UserError(f"scan.scheme: {self.path} is larger than {MAX_FILE_BYTES:,} bytes: use fewer orders")
            return read_regular(Path(self.path))
        except OSError as error:
            raise UserError(
                f"scan.scheme: {self.path} cannot be read ({error.strerror}): pass the path of a .npy or .json file"
            ) from error

    def _parsed(self, content: bytes) -> np.ndarray:
        """Return the orders in the file's content, (k, L)."""
        try:
            is_json = self.path.endswith(".json")
            found = np.array(json.loads(content)) if is_json else np.load(io.BytesIO(content), allow_pickle=False)
        except (ValueError, TypeError, OverflowError, EOFError, RecursionError, MemoryError, OSError) as error:
            raise UserError(
                f"scan.scheme: {self.path} cannot be read ({one_line(str(error))}): write integers (k, L) to it"
            ) from error
        if (
            not isinstance(found, np.ndarray)
            or found.dtype.kind not in "iu"
            or found.ndim not in (1, 2)
            or not found.size
        ):
            raise UserError(f"scan.scheme: {self.path} has no integers of shape (k, L): write one order per row")
        return np.atleast_2d(found)
