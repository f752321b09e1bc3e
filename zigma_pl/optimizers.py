"""Optimisers, schedules: the public names of `zigma_pl.training.optimizers`, used by configs and exported models."""

from zigma_pl.training.optimizers import *  # noqa: F403
from zigma_pl.training.optimizers import __all__ as __all__
