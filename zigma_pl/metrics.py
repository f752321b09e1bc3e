"""Feature extractors and scores: the public names of `zigma_pl.evaluation.metrics`, which configs use."""

from zigma_pl.evaluation.metrics import *  # noqa: F403
from zigma_pl.evaluation.metrics import __all__ as __all__
