"""Token mixers and their options, which the option `mixers` of backbones names by class_path."""

from zigma_pl.models.mixers.base import Branch, Mixer, MixerOptions, Visit
from zigma_pl.models.mixers.mamba import Mamba
from zigma_pl.models.mixers.parallel import ParallelDirections
from zigma_pl.models.mixers.self_attention import SelfAttention

__all__ = ["Branch", "Mamba", "Mixer", "MixerOptions", "ParallelDirections", "SelfAttention", "Visit"]
