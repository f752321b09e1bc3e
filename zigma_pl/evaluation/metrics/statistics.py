"""Mean and covariance of features, accumulated in float64.

Axes: n samples, d features.
"""

from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.core.files import written_whole
from zigma_pl.data.npy import read_npz


class FeatureStatistics:
    """Sums over features that give mean and covariance.

    The sums are of differences to `origin`, the mean of the first batch, to avoid cancellation in the covariance if
    features are far from zero.

    Args:
        dim: number of features, d.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.count = 0
        self.origin = torch.zeros(dim, dtype=torch.float64)
        self.sum = torch.zeros(dim, dtype=torch.float64)
        self.products = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, features: Tensor) -> Self:
        """Add a batch of features (n, d), of any floating-point dtype and on any device."""
        check_features(features, self.dim)
        features = features.detach().to(self.origin.device).double()
        if self.count == 0 and len(features):
            self.move_origin(features.mean(dim=0))
        centred = features - self.origin
        self.count += len(features)
        self.sum = self.sum + centred.sum(dim=0)
        self.products = self.products + centred.T @ centred
        return self

    def move_origin(self, origin: Tensor) -> None:
        """Convert the sums to another origin, (d,) float64."""
        shift = self.origin - origin
        moved = torch.outer(self.sum, shift) + torch.outer(shift, self.sum) + self.count * torch.outer(shift, shift)
        self.products = self.products + moved
        self.sum = self.sum + self.count * shift
        self.origin = origin

    def merge(self, other: "FeatureStatistics") -> Self:
        """Add the statistics of another set of samples."""
        assert other.dim == self.dim
        if self.count == 0:
            self.move_origin(other.origin)
        shift = other.origin - self.origin
        self.count += other.count
        moved = torch.outer(other.sum, shift) + torch.outer(shift, other.sum) + other.count * torch.outer(shift, shift)
        self.products = self.products + other.products + moved
        self.sum = self.sum + other.sum + other.count * shift
        return self

    def packed(self) -> Tensor:
        """Return all sums as one tensor, (d + 3, d) float64: rows with count, origin and sum, then the products."""
        rows = torch.stack([torch.full_like(self.sum, self.count), self.origin, self.sum])
        return torch.cat([rows, self.products])

    @classmethod
    def unpacked(cls, packed: Tensor) -> Self:
        """Return the statistics from a packed tensor."""
        statistics = cls(packed.shape[1])
        statistics.count, statistics.origin, statistics.sum = int(packed[0, 0]), packed[1], packed[2]
        statistics.products = packed[3:]
        return statistics

    def save(self, path: Path) -> None:
        """Write all sums to an .npz file, atomically."""
        with written_whole(path) as file:
            np.savez(
                file,
                count=self.count,
                origin=self.origin.cpu().numpy(),
                sum=self.sum.cpu().numpy(),
                products=self.products.cpu().numpy(),
            )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file written by `save`.

        Raises:
            UserError: the file is missing, truncated or invalid.
        """
        try:
            count, origin, sums, products = read_npz(path, "count", "origin", "sum", "products")
            dim = len(origin) if origin.ndim == 1 else 0
            expected = {"count": (np.int64, ()), "origin": (np.float64, (dim,)), "sum": (np.float64, (dim,))}
            expected["products"] = (np.float64, (dim, dim))
            for (name, wanted), array in zip(expected.items(), (count, origin, sums, products), strict=True):
                if (array.dtype, array.shape) != wanted or not np.isfinite(array).all():
                    raise ValueError(f"{name} is {array.dtype} {array.shape}, or not finite")
            if dim < 1 or count < 0:
                raise ValueError(f"of {count} samples with {dim} features")
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} is not a file of feature statistics ({error}): remove it and score again"
            ) from error
        statistics = cls(dim)
        statistics.count = int(count)
        statistics.origin, statistics.sum, statistics.products = map(torch.from_numpy, (origin, sums, products))
        return statistics

    @property
    def mean(self) -> Tensor:
        """Mean of the features, (d,) float64."""
        self._require(1)
        return self.origin + self.sum / self.count

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance, (d, d) float64."""
        self._require(2)
        return (self.products - torch.outer(self.sum, self.sum) / self.count) / (self.count - 1)

    def _require(self, least: int) -> None:
        if self.count < least:
            raise UserError(f"the statistics need at least {least} samples, got {self.count}: use more samples")


def merge_packed(parts: Tensor) -> Tensor:
    """Merge packed statistics, (number of parts, d + 3, d), into one packed tensor (d + 3, d)."""
    merged = FeatureStatistics.unpacked(parts[0])
    for part in parts[1:]:
        merged.merge(FeatureStatistics.unpacked(part))
    return merged.packed()


def check_features(features: Tensor, dim: int) -> None:
    """Raise a UserError unless features have shape (n, dim) and are finite."""
    if features.ndim != 2 or features.shape[1] != dim:
        raise UserError(f"expected features of shape (n, {dim}), got {tuple(features.shape)}")
    if not features.isfinite().all():
        raise UserError("features are not finite: check the images and the feature extractor's weights")
