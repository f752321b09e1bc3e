"""Backbones: the public names of `zigma_pl.models.backbones`, which configs and exported models use."""

from zigma_pl.models.backbones import *  # noqa: F403
from zigma_pl.models.backbones import __all__ as __all__
