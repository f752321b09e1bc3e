"""Loss terms and their teachers: public names of `zigma_pl.training.losses`, which configs use."""

from zigma_pl.training.losses import *  # noqa: F403
from zigma_pl.training.losses import __all__ as __all__
