"""Visit orders over the tokens of an image or a clip, and the schedule that assigns them to layers."""

from zigma_pl.scan.clips import clip_order
from zigma_pl.scan.mixed import MixedOrders
from zigma_pl.scan.paths import SchemeName, adjacency, inverse, visit_order
from zigma_pl.scan.schedule import ScanConfig
from zigma_pl.scan.schemes import OrdersFile, Scheme
from zigma_pl.scan.time_first import TimeFirst

__all__ = [
    "MixedOrders",
    "OrdersFile",
    "ScanConfig",
    "Scheme",
    "SchemeName",
    "TimeFirst",
    "adjacency",
    "clip_order",
    "inverse",
    "visit_order",
]
