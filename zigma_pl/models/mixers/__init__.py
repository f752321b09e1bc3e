"""Token mixers and their options, which the option `mixers` of backbones names by class_path."""

from zigma_pl.models.mixers.base import Branch, Mixer, MixerOptions, Visit
from zigma_pl.models.mixers.directions import Direction, DirectionOptions
from zigma_pl.models.mixers.linear_attention import LinearAttention
from zigma_pl.models.mixers.mamba import Mamba
from zigma_pl.models.mixers.mamba2 import Mamba2
from zigma_pl.models.mixers.parallel import ParallelDirections
from zigma_pl.models.mixers.self_attention import SelfAttention
from zigma_pl.ops.rows import UnscaledRows

__all__ = [
    "Branch",
    "Direction",
    "DirectionOptions",
    "LinearAttention",
    "Mamba",
    "Mamba2",
    "Mixer",
    "MixerOptions",
    "ParallelDirections",
    "SelfAttention",
    "UnscaledRows",
    "Visit",
]
