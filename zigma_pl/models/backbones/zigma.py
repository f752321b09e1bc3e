"""ZigMa: a diffusion backbone of Mamba layers, each scanning the grid along its own zigzag."""

from zigma_pl.models.backbones.mixer_backbone import MixerBackbone
from zigma_pl.models.mixers import Mamba
from zigma_pl.models.mixers.base import Plan
from zigma_pl.scan.schedule import ScanConfig


class ZigMa(MixerBackbone):
    """Zigzag Mamba (arXiv:2403.13802): layer i scans the tokens along order Omega_i = S_{i mod k}.

    Its own mixers are Mamba, its own orders the eight zigzags. Options as of MixerBackbone.
    """

    @classmethod
    def own_mixers(cls, scan: ScanConfig) -> Plan:
        """Mamba in every layer."""
        return Mamba()
