"""Vision Mamba: every block scans the grid in raster order and in reverse, the bidirectional baseline of the paper."""

from zigma_pl.models.backbones.parallel_mamba import ParallelMamba
from zigma_pl.scan.schedule import ScanConfig


class VisionMamba(ParallelMamba):
    """Blocks of two directions (Vision Mamba, arXiv:2401.09417): raster order, of a clip through all frames, and back.

    A ParallelMamba whose own orders are these two. Both directions have their own convolution and scan, initialised
    alike. The presets have 23, 23, 46 and 54 layers.
    """

    own_scan = ScanConfig("sweep", num_orders=1, both_ways=True)
