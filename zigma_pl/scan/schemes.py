"""Visit orders of one's own: a class that computes them, or a file that holds them."""

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
    """A family of visit orders, named by class path as `scan.scheme`; subclasses give `order`.

    Attributes:
        num_orders: how many orders there are; None for as many as are asked for.
    """

    num_orders: int | None = None

    @abstractmethod
    def order(self, index: int, height: int, width: int, num_frames: int | None = None) -> np.ndarray:
        """Return order `index`, from 0 on, of a height x width token grid, as the raster index of each token visited.

        Of a picture it has height * width entries; of a clip, num_frames * height * width, frame after frame.
        """

    def checked_order(self, index: int, height: int, width: int, num_frames: int | None = None) -> np.ndarray:
        """Return an order as int32.

        Raises:
            UserError: it is no permutation of the tokens.
        """
        num_tokens = height * width * (num_frames or 1)
        order = np.asarray(self.order(index, height, width, num_frames))
        if order.dtype.kind not in "iu" or order.shape != (num_tokens,) or not is_permutation(order):
            frames = "" if num_frames is None else f"{num_frames} x "
            raise UserError(
                f"scan.scheme: order {index} of {type(self).__name__}, {order.dtype} {order.shape}, does not visit the "
                f"{num_tokens} tokens of {frames}{height} x {width} once each, counted from 0"
            )
        return order.astype(np.int32)


@dataclass(frozen=True)
class OrdersFile(Scheme):
    """Visit orders out of a file, for the one size of token grid that they are made for.

    Args:
        path: a .npy array of whole numbers, (k, L) or (L,), or the same as nested lists in a .json file. Row i is order
            i: the raster index, from 0 on, of the token visited at each step.
        sha256: of the file's content, which is refused if it has another; None for the one that it has. It is kept with
            a model, so that other orders under the same name are not taken for those it was trained with.
    """

    path: str
    sha256: str | None = None
    _orders: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        content = self._content()
        found = hashlib.sha256(content).hexdigest()
        if self.sha256 not in (None, found):
            raise UserError(f"scan.scheme: {self.path} holds other orders than it did (SHA-256 {self.sha256})")
        object.__setattr__(self, "sha256", found)
        object.__setattr__(self, "_orders", self._parsed(content))

    @property
    def num_orders(self) -> int:  # type: ignore[override]  # there as an attribute
        """Orders in the file."""
        return len(self._orders)

    def order(self, index: int, height: int, width: int, num_frames: int | None = None) -> np.ndarray:
        """Return row `index` of the file."""
        if index >= len(self._orders):
            raise UserError(f"scan.indices: {self.path} has {len(self._orders)} orders, counted from 0, no {index}")
        row: np.ndarray = self._orders[index]
        return row

    def _content(self) -> bytes:
        try:
            if Path(self.path).stat().st_size > MAX_FILE_BYTES:
                raise UserError(f"scan.scheme: {self.path} is larger than {MAX_FILE_BYTES:,} bytes: leave orders out")
            return read_regular(Path(self.path))
        except OSError as error:
            raise UserError(
                f"scan.scheme: the orders in {self.path} cannot be read ({error.strerror}): give the path of a .npy or "
                ".json file"
            ) from error

    def _parsed(self, content: bytes) -> np.ndarray:
        """Return the orders in the file's content, (k, L)."""
        try:
            is_json = self.path.endswith(".json")
            found = np.array(json.loads(content)) if is_json else np.load(io.BytesIO(content), allow_pickle=False)
        except (ValueError, TypeError, OverflowError, EOFError, RecursionError, MemoryError, OSError) as error:
            raise UserError(f"scan.scheme: {self.path} holds no orders ({one_line(str(error))})") from error
        if (
            not isinstance(found, np.ndarray)
            or found.dtype.kind not in "iu"
            or found.ndim not in (1, 2)
            or not found.size
        ):
            raise UserError(f"scan.scheme: {self.path} holds no (k, L) whole numbers: give an order in each row")
        return np.atleast_2d(found)
