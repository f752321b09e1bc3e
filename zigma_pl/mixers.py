"""Token mixers: the public names of `zigma_pl.models.mixers`, which configs and exported models use."""

from zigma_pl.models.mixers import *  # noqa: F403
from zigma_pl.models.mixers import __all__ as __all__
