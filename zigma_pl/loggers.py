"""Loggers: the public names of `zigma_pl.training.loggers`, which configs use."""

from zigma_pl.training.loggers import *  # noqa: F403
from zigma_pl.training.loggers import __all__ as __all__
