"""Conditioners: the public names of `zigma_pl.models.conditioners`, which configs and exported models use."""

from zigma_pl.models.conditioners import *  # noqa: F403
from zigma_pl.models.conditioners import __all__ as __all__
