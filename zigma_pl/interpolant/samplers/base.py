"""Base class of samplers, and the network interface that they use."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from zigma_pl.core.class_paths import Configurable
from zigma_pl.core.errors import UserError
from zigma_pl.interpolant.objective import Network, Objective


class SampleResult(NamedTuple):
    """Result of a sampler.

    x_data: (B, ...) samples at t = 0, float32 (float64 for float64 noise).
    num_network_calls: number of network calls; a call with a doubled batch for guidance counts once.
    """

    x_data: Tensor
    num_network_calls: int


class Prediction:
    """One network output at (x_t, t), with exact conversions to velocity, score and data."""

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
    """The network as samplers call it, with checks of the output and a count of calls."""

    def __init__(self, network: Network, objective: Objective) -> None:
        self.objective = objective
        self.num_calls = 0
        self._network = network

    def __call__(self, x_t: Tensor, t: float | Tensor) -> Prediction:
        """Call the network once, at x_t (B, ...) and t, a number or (B,), which it receives as (B,) in x_t's dtype."""
        batch_size = x_t.shape[0]
        times = x_t.new_full((batch_size,), t) if isinstance(t, float) else t.to(x_t.dtype).expand(batch_size)
        output = self._network(x_t, times)
        self.num_calls += 1
        if output.shape != x_t.shape:
            raise UserError(f"network: output shape {tuple(output.shape)} differs from x_t's {tuple(x_t.shape)}")
        return Prediction(self.objective, output, x_t, times)


class Sampler(Configurable, ABC):
    """Integrates from noise at t = 1 to data at t = 0; subclasses implement `integrate`.

    Unless documented otherwise, the samples of a batch are independent of each other: sample i is a function of row i
    of the noise, generator i and the network only.
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
        """Generate samples from noise.

        Args:
            network: network(x_t, t) -> raw output in the shape of x_t, with x_t (B, ...) and t (B,), including
                guidance. Its output may be bfloat16; the state stays float32.
            x_noise: (B, ...) standard normal noise.
            objective: defines the meaning of the raw output, the path and the `time_range`. If the range starts below
                t = 1, sampling starts from sigma_t x_noise, without the term alpha_t x_data.
            generators: one CPU generator per sample, for samplers that draw noise in their steps.

        Raises: UserError if the noise is not a floating-point batch, if the output has another shape, or if generators
            are missing or their number is wrong.
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
        """Integrate `x_t`, (B, ...), from the upper end of the objective's time range to t = 0.

        Args:
            predictor: `predictor(x_t, t)` calls the network once, at a single time or at (B,) times, and returns a
                `Prediction` with `velocity`, `score` and `data`, each (B, ...). The network may only be called at times
                within `predictor.objective.time_range`.
            x_t: the noise, float32 or float64, multiplied by sigma_t of the start time.
            generators: one CPU generator per sample, None if the caller passed none.
        """
