"""Backbones: networks that map (x_t, t, condition) to a prediction of x_t's shape, one file each."""

from zigma_pl.backbones.base import Backbone
from zigma_pl.backbones.dit import DiT
from zigma_pl.backbones.parallel_mamba import ParallelMamba
from zigma_pl.backbones.uvit import UViT
from zigma_pl.backbones.vision_mamba import VisionMamba
from zigma_pl.backbones.zigma import ZigMa

__all__ = ["Backbone", "DiT", "ParallelMamba", "UViT", "VisionMamba", "ZigMa"]
