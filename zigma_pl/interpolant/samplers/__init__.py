"""Samplers from noise (t = 1) to data (t = 0), and classifier-free guidance."""

from zigma_pl.interpolant.samplers.base import Predictor, Sampler, SampleResult
from zigma_pl.interpolant.samplers.guidance import Guidance, guided_network
from zigma_pl.interpolant.samplers.multistep import MultistepSampler
from zigma_pl.interpolant.samplers.ode import EncodeResult, ODESampler
from zigma_pl.interpolant.samplers.sde import SDESampler
from zigma_pl.interpolant.samplers.time_grids import time_grid

__all__ = [
    "EncodeResult",
    "Guidance",
    "MultistepSampler",
    "ODESampler",
    "Predictor",
    "SDESampler",
    "SampleResult",
    "Sampler",
    "guided_network",
    "time_grid",
]
