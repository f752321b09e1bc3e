"""Backbones: networks that map (x_t, t, condition) to a prediction of x_t's shape, one file each."""

from zigma_pl.backbones.base import Backbone
from zigma_pl.backbones.zigma import ZigMa

__all__ = ["Backbone", "ZigMa"]
