"""Samplers and guidance: the public names of `zigma_pl.interpolant.samplers`, which configs and exported models use."""

from zigma_pl.interpolant.samplers import *  # noqa: F403
from zigma_pl.interpolant.samplers import __all__ as __all__
