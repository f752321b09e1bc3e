"""Backbones: networks that map (x_t, t, conditions) to a prediction with the shape of x_t."""

from zigma_pl.models.backbones.base import Backbone
from zigma_pl.models.backbones.dit import DiT
from zigma_pl.models.backbones.parallel_mamba import ParallelMamba
from zigma_pl.models.backbones.uvit import UViT
from zigma_pl.models.backbones.vision_mamba import VisionMamba
from zigma_pl.models.backbones.zigma import ZigMa

__all__ = ["Backbone", "DiT", "ParallelMamba", "UViT", "VisionMamba", "ZigMa"]
