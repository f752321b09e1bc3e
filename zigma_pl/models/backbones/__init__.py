"""Backbones: networks that map (x_t, t, condition) to a prediction of x_t's shape, one file each."""

from zigma_pl.models.backbones.base import Backbone
from zigma_pl.models.backbones.dit import DiT
from zigma_pl.models.backbones.parallel_mamba import ParallelMamba
from zigma_pl.models.backbones.uvit import UViT
from zigma_pl.models.backbones.vision_mamba import VisionMamba
from zigma_pl.models.backbones.zigma import ZigMa

__all__ = ["Backbone", "DiT", "ParallelMamba", "UViT", "VisionMamba", "ZigMa"]
