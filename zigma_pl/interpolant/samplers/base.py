"""Base class of samplers, and the network interface that they use."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from zigma_pl.core.class_paths import Configurable
from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_numbers
from zigma_pl.interpolant.objective import Network, Objective


class SampleResult(NamedTuple):
    """Result of a sampler.

    x_data: (B, ...) samples at t = 0, or states at t_end > 0, float32 (float64 for float64 noise).
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
    """The network as samplers call it, with checks of the output and a count of calls.

    Args:
        network: network(x_t, t) -> raw output in the shape of x_t.
        objective: defines the meaning of the raw output, the path and the `time_range`.
        t_start: time of the states that the sampler starts from, in (0, 1].
        t_end: time at which it ends: 0, or a time in `time_range`.

    Attributes:
        t_start: the argument, or the upper end of `time_range` if that is lower.
        t_end: the argument.
        t_last: lowest time at which the network may be called. If it is above `t_end`, which is then 0, the last step
            starts there and returns the expected data.

    Raises: UserError if a time is out of range, or `t_end` is not below `t_start`.
    """

    def __init__(self, network: Network, objective: Objective, *, t_start: float = 1.0, t_end: float = 0.0) -> None:
        lowest, highest = objective.time_range
        check_numbers("sample", above=0, most=1, t_start=t_start)
        check_numbers("sample", least=0, below=1, t_end=t_end)
        self.objective = objective
        self.t_start = min(t_start, highest)
        self.t_end = t_end
        self.t_last = max(t_end, lowest)
        self.num_calls = 0
        self._network = network
        if 0 < t_end < lowest:
            raise UserError(f"sample.t_end: this objective ends at {lowest}: set t_end to 0, or to {lowest} or more")
        if self.t_last >= self.t_start:
            raise UserError(f"sample.t_start: must be above {self.t_last}, got {t_start}: raise it or lower t_end")

    def time_shift(self, own: float | None) -> float:
        """Return the shift of a sampler's time grid: its own option, or None for that of training."""
        return self.objective.time_shift if own is None else own

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
        x_data: Tensor | None = None,
        t_start: float = 1.0,
        t_end: float = 0.0,
    ) -> SampleResult:
        """Generate samples from noise, or from noise and data.

        Args:
            network: network(x_t, t) -> raw output in the shape of x_t, with x_t (B, ...) and t (B,), including
                guidance. Its output may be bfloat16; the state stays float32.
            x_noise: (B, ...) standard normal noise.
            objective: defines the meaning of the raw output, the path and the `time_range`.
            generators: one CPU generator per sample, for samplers that draw noise in their steps.
            x_data: (B, ...) clean latents, required if `t_start` < 1. Sampling starts from
                alpha_t x_data + sigma_t x_noise; without data, from sigma_t x_noise.
            t_start: start time, in (0, 1]; lower values keep more of `x_data` (the strength of image-to-image). The
                upper end of `time_range` is used instead if it is lower.
            t_end: end time, in [0, t_start). If it is not 0, the states at this time are returned, from which `solve`
                can continue. The sampler's steps divide the time from `t_start` to `t_end`.

        Raises: UserError if the noise is not a floating-point batch, if a time is out of range, if data are missing or
            have another shape, if the output has another shape, or if generators are missing or their number is wrong.
        """
        check_batch("x_noise", x_noise)
        x_noise = x_noise.to(torch.promote_types(x_noise.dtype, torch.float32))
        alpha, sigma = objective.path.weights(min(t_start, objective.time_range[1]))
        x_t = sigma * x_noise
        if x_data is not None:
            if x_data.shape != x_noise.shape:
                raise UserError(f"x_data: shape {tuple(x_data.shape)} differs from x_noise's {tuple(x_noise.shape)}")
            x_t = x_t + alpha * x_data.to(x_noise.dtype)
        elif t_start < 1:
            raise UserError(f"sample.t_start: {t_start} needs data to start from: pass x_data, or set t_start to 1")
        return self.solve(network, x_t, objective=objective, generators=generators, t_start=t_start, t_end=t_end)

    @torch.no_grad()
    def solve(
        self,
        network: Network,
        x_t: Tensor,
        *,
        objective: Objective,
        generators: list[torch.Generator] | None = None,
        t_start: float = 1.0,
        t_end: float = 0.0,
    ) -> SampleResult:
        """Integrate from states at `t_start` to `t_end`.

        Args:
            network, objective, generators, t_start, t_end: see `sample`.
            x_t: (B, ...) states at `t_start`, such as the result of `sample` with this `t_end`.

        Raises: UserError, see `sample`.
        """
        check_batch("x_t", x_t)
        if generators is not None and len(generators) != x_t.shape[0]:
            raise UserError(f"generators: expected one per sample, {x_t.shape[0]}, got {len(generators)}")
        predictor = Predictor(network, objective, t_start=t_start, t_end=t_end)
        x_data = self.integrate(predictor, x_t.to(torch.promote_types(x_t.dtype, torch.float32)), generators)
        return SampleResult(x_data, predictor.num_calls)

    @abstractmethod
    def integrate(self, predictor: Predictor, x_t: Tensor, generators: list[torch.Generator] | None) -> Tensor:
        """Integrate `x_t`, (B, ...), from `predictor.t_start` to `predictor.t_end`, which is 0 by default.

        Args:
            predictor: `predictor(x_t, t)` calls the network once, at a single time or at (B,) times, and returns a
                `Prediction` with `velocity`, `score` and `data`, each (B, ...). The network may only be called at times
                from `predictor.t_start` down to `predictor.t_last`.
            x_t: states at `predictor.t_start`, float32 or float64.
            generators: one CPU generator per sample, None if the caller passed none.
        """


def check_batch(name: str, x: Tensor) -> None:
    """Raise UserError, with the name of the argument, unless it is a floating-point batch (B, ...)."""
    if x.ndim < 2 or not x.is_floating_point():
        raise UserError(f"{name}: expected (B, ...) floating point, got {tuple(x.shape)} {x.dtype}")
