"""ZigMa: a diffusion backbone of Mamba layers, each of which scans along its own zigzag."""

from zigma_pl.models.backbones.mixer_backbone import MixerBackbone
from zigma_pl.models.mixers import Mamba
from zigma_pl.models.mixers.base import Plan
from zigma_pl.scan.schedule import ScanConfig


class ZigMa(MixerBackbone):
    """Zigzag Mamba (arXiv:2403.13802): layer i scans the tokens along order Omega_i = S_{i mod k}.

    The default mixer is Mamba, the default orders are the eight zigzags. See `MixerBackbone` for the options.
    """

    @classmethod
    def default_mixers(cls, scan: ScanConfig) -> Plan:
        """Return Mamba for every layer."""
        return Mamba()
