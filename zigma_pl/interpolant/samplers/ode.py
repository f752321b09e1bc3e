"""Samplers of the probability-flow ODE dx/dt = velocity(x, t) (SiT, arXiv:2401.08740, Sec. 2)."""

from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_numbers
from zigma_pl.interpolant.objective import Network, Objective
from zigma_pl.interpolant.samplers.base import Predictor, Sampler, check_batch
from zigma_pl.interpolant.samplers.dopri5 import integrate_dopri5
from zigma_pl.interpolant.samplers.time_grids import check_steps, time_grid

ODEMethod = Literal["euler", "heun", "dopri5"]
ErrorControl = Literal["per_sample", "batch"]


class EncodeResult(NamedTuple):
    """Result of encoding.

    x_noise: (B, ...) the noise that `sample` turns into the data; float32, or float64 for float64 data.
    num_network_calls: number of network calls; a call with a doubled batch for guidance counts once.
    """

    x_noise: Tensor
    num_network_calls: int


class ODESampler(Sampler):
    """Deterministic sampling, and encoding of data.

    Network calls: `num_steps` with Euler, 2 `num_steps` with Heun. If the objective's time range ends before t = 0
    (score or data prediction, or the VP path), the last step starts there and returns the expected data with a single
    call. Heun then needs 2 `num_steps` - 1 calls, and dopri5 one call in addition to its integration.

    Args:
        method: "euler" (order 1), "heun" (order 2) or "dopri5" (adaptive, order 5).
        num_steps: number of steps of euler and heun, including the last one; dopri5 chooses its own.
        time_shift: 1 for uniform steps of euler and heun, > 1 for more steps near noise (arXiv:2403.03206); None for
            the objective's, with which it was trained. dopri5 does not use it.
        atol: absolute tolerance of dopri5.
        rtol: relative tolerance of dopri5.
        error_control: step size control of dopri5. "per_sample": separate steps for every sample, so that samples do
            not depend on their batch. "batch": the same steps for all samples, from their joint error, as in
            torchdiffeq and published evaluations; samples then depend on their batch, by about the tolerance.

    Raises: UserError for an unknown option or a number out of range.
    """

    def __init__(
        self,
        method: ODEMethod = "euler",
        num_steps: int = 50,
        time_shift: float | None = None,
        atol: float = 1e-6,
        rtol: float = 1e-3,
        error_control: ErrorControl = "per_sample",
    ) -> None:
        check_steps("ODESampler", num_steps, time_shift)
        if method not in get_args(ODEMethod):
            raise UserError(f"ODESampler.method: unknown {method!r}: choose one of {', '.join(get_args(ODEMethod))}")
        if error_control not in get_args(ErrorControl):
            choices = ", ".join(get_args(ErrorControl))
            raise UserError(f"ODESampler.error_control: unknown {error_control!r}: choose one of {choices}")
        check_numbers("ODESampler", above=0, atol=atol, rtol=rtol)
        self.method: ODEMethod = method
        self.num_steps = num_steps
        self.time_shift = time_shift
        self.atol = atol
        self.rtol = rtol
        self.error_control: ErrorControl = error_control

    def integrate(self, predictor: Predictor, x_t: Tensor, generators: list[torch.Generator] | None) -> Tensor:
        """Integrate the velocity with the chosen method."""
        is_regular = predictor.t_last == predictor.t_end  # otherwise the last step returns the expected data
        if self.method == "dopri5":
            x_t = self._adaptive(predictor, x_t, predictor.t_start, predictor.t_last)
            return x_t if is_regular else predictor(x_t, predictor.t_last).data
        grid = self._grid(predictor, predictor.t_last, predictor.t_end)
        x_t = self._along(predictor, x_t, grid if is_regular else grid[:-1])
        return x_t if is_regular else predictor(x_t, grid[-2]).data

    @torch.no_grad()
    def encode(self, network: Network, x_data: Tensor, *, objective: Objective, t_end: float = 1.0) -> EncodeResult:
        """Encode data as noise along the ODE; `sample` turns this noise into the same data, up to step errors.

        Network calls: `num_steps` by Euler, 2 `num_steps` by Heun. The steps are those of `sample`, in reverse.

        Args:
            network: network(x_t, t) -> raw output in the shape of x_t. Guidance scales other than 1 make the inversion
                less accurate.
            x_data: (B, ...) clean latents. If the objective's `time_range` starts above t = 0, the integration starts
                there from alpha_t x_data.
            objective: defines what the raw output is, the path, and the `time_range` of the network.
            t_end: time to stop at, in (0, 1]. Below 1 the states at this time are returned, from which `solve` with
                `t_start` = `t_end` continues.

        Raises: UserError for data that are not a floating-point batch, a time out of range, or an output of another
            shape.
        """
        check_batch("x_data", x_data)
        lowest, highest = objective.time_range
        check_numbers("encode", above=lowest, most=1, t_end=t_end)
        predictor = Predictor(network, objective, t_start=t_end)
        x_t = x_data.to(torch.promote_types(x_data.dtype, torch.float32)) * objective.path.weights(lowest)[0]
        if self.method == "dopri5":
            x_t = self._adaptive(predictor, x_t, lowest, predictor.t_start)
        else:
            x_t = self._along(predictor, x_t, self._grid(predictor, lowest, lowest)[::-1])
        # `sample` starts from sigma x_noise, also where the network's range ends before t = 1.
        x_noise = x_t / objective.path.weights(highest)[1] if t_end == 1 else x_t
        return EncodeResult(x_noise, predictor.num_calls)

    def _grid(self, predictor: Predictor, last: float, end: float) -> list[float]:
        shift = predictor.time_shift(self.time_shift)
        return time_grid(self.num_steps, start=predictor.t_start, last=last, end=end, shift=shift)

    def _along(self, predictor: Predictor, x_t: Tensor, times: list[float]) -> Tensor:
        for t, t_next in pairwise(times):
            x_t = self._step(predictor, x_t, t, t_next)
        return x_t

    def _step(self, predictor: Predictor, x_t: Tensor, t: float, t_next: float) -> Tensor:
        velocity = predictor(x_t, t).velocity
        x_next = x_t + (t_next - t) * velocity
        if self.method == "euler":
            return x_next
        return x_t + (t_next - t) / 2 * (velocity + predictor(x_next, t_next).velocity)

    def _adaptive(self, predictor: Predictor, x_t: Tensor, t_start: float, t_end: float) -> Tensor:
        if self.error_control == "per_sample":
            return integrate_dopri5(
                lambda x, t: predictor(x, t).velocity, x_t, t_start, t_end, atol=self.atol, rtol=self.rtol
            )
        from torchdiffeq import odeint

        times = torch.tensor([t_start, t_end], dtype=torch.float64, device=x_t.device)
        path: Tensor = odeint(
            lambda t, x: predictor(x, t).velocity, x_t, times, atol=self.atol, rtol=self.rtol, method="dopri5"
        )
        return path[-1]
