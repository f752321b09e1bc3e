"""Visit orders of a token grid or a clip of them, and the schedule that gives each layer its order."""

from zigma_pl.scan.clips import clip_order
from zigma_pl.scan.paths import SchemeName, adjacency, inverse, visit_order
from zigma_pl.scan.schedule import ScanConfig

__all__ = ["ScanConfig", "SchemeName", "adjacency", "clip_order", "inverse", "visit_order"]
