"""Parallel Mamba: every block scans along all orders, the expensive alternative to ZigMa's one order per layer."""

from zigma_pl.models.backbones.mixer_backbone import MixerBackbone
from zigma_pl.models.mixers import ParallelDirections
from zigma_pl.models.mixers.base import Plan
from zigma_pl.scan.schedule import ScanConfig


class ParallelMamba(MixerBackbone):
    """Blocks with k parallel scan directions, one for each order of the scan (ZigMa, arXiv:2403.13802, Fig. 4 c and d).

    The default mixer is ParallelDirections with as many directions as the scan has orders, so that every layer scans
    along all of them. Time and memory of a layer grow with k; size B with eight directions has 19 layers instead of 24.
    With k = 1 it is ZigMa with one order. See `MixerBackbone` for the options.
    """

    @classmethod
    def default_mixers(cls, scan: ScanConfig) -> Plan:
        """Return a mixer that scans along all orders in every layer."""
        return ParallelDirections(scan.period)
