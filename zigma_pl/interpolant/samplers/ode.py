"""Samplers of the probability-flow ODE dx/dt = velocity(x, t) (SiT, arXiv:2401.08740, Sec. 2)."""

from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_numbers
from zigma_pl.interpolant.samplers.base import Predictor, Sampler
from zigma_pl.interpolant.samplers.dopri5 import integrate_dopri5
from zigma_pl.interpolant.samplers.time_grids import check_steps, time_grid

ODEMethod = Literal["euler", "heun", "dopri5"]
ErrorControl = Literal["per_sample", "batch"]


class ODESampler(Sampler):
    """Deterministic sampling.

    Network calls: `num_steps` with Euler, 2 `num_steps` with Heun. If the objective's time range ends before t = 0
    (score prediction, or the VP path), the last step starts there and returns the expected data with a single call.
    Heun then needs 2 `num_steps` - 1 calls, and dopri5 one call in addition to its integration.

    Args:
        method: "euler" (order 1), "heun" (order 2) or "dopri5" (adaptive, order 5).
        num_steps: number of steps of euler and heun, including the last one; dopri5 chooses its own.
        time_shift: 1 for uniform steps of euler and heun, > 1 for more steps near noise (arXiv:2403.03206).
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
        time_shift: float = 1.0,
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
        t_last, t_start = predictor.objective.time_range
        if self.method == "dopri5":
            x_t = self._adaptive(predictor, x_t, t_start, t_last)
            return x_t if t_last == 0 else predictor(x_t, t_last).data
        grid = time_grid(self.num_steps, start=t_start, last=t_last, shift=self.time_shift)
        for t, t_next in pairwise(grid if t_last == 0 else grid[:-1]):
            x_t = self._step(predictor, x_t, t, t_next)
        return x_t if t_last == 0 else predictor(x_t, grid[-2]).data

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
