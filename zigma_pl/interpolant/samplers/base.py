"""The contract of a sampler, and a network seen through its objective."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from zigma_pl.core.class_paths import Configurable
from zigma_pl.core.errors import UserError
from zigma_pl.interpolant.objective import Network, Objective


class SampleResult(NamedTuple):
    """What a sampler returns.

    x_data: (B, ...) samples at t = 0, float32 (float64 for float64 noise).
    num_network_calls: how often the network was called, counted; a doubled guidance batch inside it is one call.
    """

    x_data: Tensor
    num_network_calls: int


class Prediction:
    """One network output at (x_t, t), from which velocity, score and data follow exactly and without another call."""

    def __init__(self, objective: Objective, output: Tensor, x_t: Tensor, t: Tensor) -> None:
        self._objective = objective
        self._arguments = (output, x_t, t)

    @property
    def velocity(self) -> Tensor:
        """dx_t/dt."""
        return self._objective.velocity(*self._arguments)

    @property
    def score(self) -> Tensor:
        """The gradient of log p_t(x_t)."""
        return self._objective.score(*self._arguments)

    @property
    def data(self) -> Tensor:
        """The expected data given x_t."""
        return self._objective.data(*self._arguments)


class Predictor:
    """The network as a solver sees it: called with one time or one per sample, checked, and counted."""

    def __init__(self, network: Network, objective: Objective) -> None:
        self.objective = objective
        self.num_calls = 0
        self._network = network

    def __call__(self, x_t: Tensor, t: float | Tensor) -> Prediction:
        """Call the network once. t: a number or (B,); the network gets (B,) in x_t's dtype."""
        batch_size = x_t.shape[0]
        times = x_t.new_full((batch_size,), t) if isinstance(t, float) else t.to(x_t.dtype).expand(batch_size)
        output = self._network(x_t, times)
        self.num_calls += 1
        if output.shape != x_t.shape:
            raise UserError(f"network: output shape {tuple(output.shape)} differs from x_t's {tuple(x_t.shape)}")
        return Prediction(self.objective, output, x_t, times)


class Sampler(Configurable, ABC):
    """Integrates from noise at t = 1 to data at t = 0.

    Every sampler treats the samples of a batch independently unless its documentation says otherwise: sample i is a
    function of row i of the noise, generator i and the network alone.
    """

    @torch.no_grad()
    def sample(
        self,
        network: Network,
        x_noise: Tensor,
        *,
        objective: Objective,
        generators: list[torch.Generator] | None = None,
    ) -> SampleResult:
        """Turn noise into samples.

        Args:
            network: network(x_t, t) -> raw output in the shape of x_t, x_t (B, ...) and t (B,); guidance is already
                inside. Its output may be bfloat16: the state stays float32.
            x_noise: (B, ...) standard normal noise.
            objective: tells what the raw output means, on which path and over which `time_range`. Where that range
                starts below t = 1, the start is sigma_t x_noise, and the data's share alpha_t is left out.
            generators: one CPU generator per sample, for samplers that draw noise on the way.

        Raises: UserError for noise that is not a batch of floating point rows, an output of another shape, or
            generators that are missing or too few.
        """
        if x_noise.ndim < 2 or not x_noise.is_floating_point():
            raise UserError(f"x_noise: expected (B, ...) floating point, got {tuple(x_noise.shape)} {x_noise.dtype}")
        if generators is not None and len(generators) != x_noise.shape[0]:
            raise UserError(f"generators: expected one per sample, {x_noise.shape[0]}, got {len(generators)}")
        predictor = Predictor(network, objective)
        t_start = torch.tensor(objective.time_range[1], dtype=torch.float64)
        x_t = x_noise.to(torch.promote_types(x_noise.dtype, torch.float32))
        x_t = x_t * objective.path.coefficients(t_start).sigma.item()
        x_data = self.integrate(predictor, x_t, generators)
        return SampleResult(x_data, predictor.num_calls)

    @abstractmethod
    def integrate(self, predictor: Predictor, x_t: Tensor, generators: list[torch.Generator] | None) -> Tensor:
        """Take `x_t`, (B, ...), from the upper end of the objective's time range to t = 0; subclasses give this.

        Args:
            predictor: `predictor(x_t, t)` calls the network once, at one time for all or at (B,) times, and returns a
                prediction with `velocity`, `score` and `data`, each (B, ...); `predictor.objective.time_range` says
                from when to when the network may be called.
            x_t: the noise, float32 or float64, scaled as the path has it where it starts.
            generators: one CPU generator for each sample, of samplers that draw noise; None where none were given.
        """
