"""Visit orders of a token grid or a clip of them, and the schedule that gives each layer its order."""

from zigma_pl.scan.clips import clip_order
from zigma_pl.scan.paths import SchemeName, adjacency, inverse, visit_order
from zigma_pl.scan.schedule import ScanConfig
from zigma_pl.scan.schemes import OrdersFile, Scheme

__all__ = ["OrdersFile", "ScanConfig", "Scheme", "SchemeName", "adjacency", "clip_order", "inverse", "visit_order"]
