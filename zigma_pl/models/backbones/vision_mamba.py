"""Vision Mamba: every block scans in raster order and in reverse, the bidirectional baseline of the paper."""

from zigma_pl.models.backbones.parallel_mamba import ParallelMamba
from zigma_pl.scan.schedule import ScanConfig


class VisionMamba(ParallelMamba):
    """Blocks with two scan directions (Vision Mamba, arXiv:2401.09417): raster order and its reverse.

    A `ParallelMamba` with these two default orders, which run through all frames of a clip. Each direction has its own
    convolution and scan, with the same initialisation. The presets have 23, 23, 46 and 54 layers.
    """

    default_scan = ScanConfig("sweep", num_orders=1, both_ways=True)
