"""Base classes of scans along one order, from which mixers with one or several directions are built.

Axes: B batch, L tokens, D width, E inner width.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from zigma_pl.models.mixers.base import MixerOptions


class Direction(nn.Module, ABC):
    """A scan along one order, between an input projection and an output projection, which directions can share."""

    num_projected: int  # features of the input projection
    inner_width: int  # E

    @abstractmethod
    def scan(self, projected: Tensor, visit_order: Tensor | None = None) -> Tensor:
        """Scan projected tokens, (B, L, num_projected), along visit_order, (L,) int32: (B, L, E) in raster order."""


class DirectionOptions(MixerOptions):
    """Options of a mixer that scans along one order; `ParallelDirections` uses them for each of its directions."""

    @abstractmethod
    def build_direction(self, width: int) -> Direction:
        """Build the scan of one direction for tokens of this width."""

    def build_norm(self, width: int) -> nn.Module:
        """Build the norm of the sum of all directions, (B, L, E) -> (B, L, E); by default none."""
        return nn.Identity()
