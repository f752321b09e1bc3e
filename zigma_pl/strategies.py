"""Strategies: the public names of `zigma_pl.training.strategies`, which configs and exported models use."""

from zigma_pl.training.strategies import *  # noqa: F403
from zigma_pl.training.strategies import __all__ as __all__
