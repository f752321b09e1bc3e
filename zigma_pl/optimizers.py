"""Optimisers and schedules: public names of `zigma_pl.training.optimizers`, which configs and exported models use."""

from zigma_pl.training.optimizers import *  # noqa: F403
from zigma_pl.training.optimizers import __all__ as __all__
