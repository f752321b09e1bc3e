"""Parallel Mamba: every block scans the grid along all of the orders, the costly alternative to ZigMa's turns."""

from zigma_pl.models.backbones.mixer_backbone import MixerBackbone
from zigma_pl.models.mixers import ParallelDirections
from zigma_pl.models.mixers.base import Plan
from zigma_pl.scan.schedule import ScanConfig


class ParallelMamba(MixerBackbone):
    """Blocks with k scan directions in parallel (ZigMa, arXiv:2403.13802, Fig. 4 c and d), k orders of the scan.

    Its own mixers are ParallelDirections of as many directions as the scan has orders, so that every layer scans along
    all of them. A layer's time and memory grow with k; B with eight directions has 19 layers in place of 24. With k = 1
    it is ZigMa with one order. Options as of MixerBackbone.
    """

    @classmethod
    def own_mixers(cls, scan: ScanConfig) -> Plan:
        """All orders in every layer."""
        return ParallelDirections(scan.period)
