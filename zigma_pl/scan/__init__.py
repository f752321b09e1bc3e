"""Visit orders of a token grid, and the schedule that gives each layer its order."""

from zigma_pl.scan.paths import SchemeName, adjacency, inverse, visit_order
from zigma_pl.scan.schedule import ScanConfig

__all__ = ["ScanConfig", "SchemeName", "adjacency", "inverse", "visit_order"]
