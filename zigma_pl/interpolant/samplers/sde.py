"""Samplers of the reverse-time SDE (SiT, arXiv:2401.08740, Sec. 2; ScoreSDE, arXiv:2011.13456).

From t = 1 to t = 0, dx = (velocity - w(t) / 2 score) dt + sqrt(w(t)) dW with dt < 0. As a function of 1 - t this is the
ODE plus Langevin dynamics on p_t with rate w / 2, which leave p_t unchanged. The marginals are therefore those of the
ODE for every diffusion w >= 0.
"""

import math
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.core.randomness import randn_per_sample
from zigma_pl.core.ranges import check_numbers
from zigma_pl.interpolant.objective import Objective
from zigma_pl.interpolant.samplers.base import Predictor, Sampler
from zigma_pl.interpolant.samplers.time_grids import check_steps, time_grid
from zigma_pl.interpolant.schedules import Schedule

SDEMethod = Literal["euler_maruyama", "heun"]
Diffusion = Literal["sigma", "linear", "constant", "decreasing", "increasing_decreasing", "sbdm"]
LastStep = Literal["mean", "tweedie", "euler"]


def diffusion_coefficient(diffusion: Diffusion, t: float, path: Schedule) -> float:
    """Return w(t) at scale 1, the variance of the noise per unit of time; see `SDESampler`."""
    if diffusion in ("sigma", "sbdm"):
        c = path.coefficients(torch.tensor(t, dtype=torch.float64))
        return (c.sigma if diffusion == "sigma" else 2 * c.sigma * c.determinant / c.alpha).item()
    if diffusion == "linear":
        return t
    if diffusion == "decreasing":
        return math.sin(math.pi * t / 2) ** 4
    return math.sin(math.pi * t) ** 2 if diffusion == "increasing_decreasing" else 1.0


class SDESampler(Sampler):
    """Stochastic sampling, with noise drawn in every step from each sample's own generator.

    The score is infinite at t = 0, so the last step, from `last_step_size` to 0, adds no noise. Network calls:
    `num_steps` with Euler-Maruyama, 2 `num_steps` - 1 with Heun (whose last step is a single call).

    If the data is concentrated, steps are stable only below about 4 sigma^2 / w: near t = 0, "constant" needs many
    small steps, "sigma" does not.

    Args:
        method: "euler_maruyama" (weak order 1) or "heun" (weak order 2).
        num_steps: number of steps, including the last one.
        diffusion: w(t) at scale 1: "sigma" sigma_t, "linear" t, "constant" 1, "decreasing" sin(pi t / 2)^4 (from 1 at
            noise to 0 at data), "increasing_decreasing" sin(pi t)^2, "sbdm" 2 sigma (sigma' - sigma alpha' / alpha),
            which is beta(t) of the VP diffusion and infinite at t = 1 on the other paths.
        diffusion_scale: factor of w, >= 0; 0 is the ODE. SiT's released code uses these forms for w / 2, so that its
            norm 1 corresponds to scale 2 here (except "sbdm", which already includes the factor 2).
        last_step: "mean" is the SDE step without its noise, "euler" the step of the ODE, "tweedie" returns the expected
            data.
        last_step_size: start time of the last step, in (0, 1); SiT uses 0.04.
        time_shift: 1 for uniform steps, > 1 for more steps near noise; None for the objective's, with which it was
            trained.

    Raises: UserError for an unknown option or a number out of range.
    """

    def __init__(
        self,
        method: SDEMethod = "euler_maruyama",
        num_steps: int = 250,
        diffusion: Diffusion = "sigma",
        diffusion_scale: float = 1.0,
        last_step: LastStep = "mean",
        last_step_size: float = 0.04,
        time_shift: float | None = None,
    ) -> None:
        check_steps("SDESampler", num_steps, time_shift)
        _check_choice("method", method, get_args(SDEMethod))
        _check_choice("diffusion", diffusion, get_args(Diffusion))
        _check_choice("last_step", last_step, get_args(LastStep))
        check_numbers("SDESampler", least=0, diffusion_scale=diffusion_scale)
        check_numbers("SDESampler", above=0, below=1, last_step_size=last_step_size)
        self.method: SDEMethod = method
        self.num_steps = num_steps
        self.diffusion: Diffusion = diffusion
        self.diffusion_scale = diffusion_scale
        self.last_step: LastStep = last_step
        self.last_step_size = last_step_size
        self.time_shift = time_shift

    def integrate(self, predictor: Predictor, x_t: Tensor, generators: list[torch.Generator] | None) -> Tensor:
        """Integrate the reverse-time SDE.

        Raises: UserError without generators, for "sbdm" on a path that reaches pure noise, if the last step starts
            above `t_start`, or if `t_end` lies within the last step.
        """
        if generators is None:
            raise UserError("SDESampler: needs one random generator per sample: pass generators")
        if self.diffusion == "sbdm" and predictor.objective.path.reaches_pure_noise:
            schedule = predictor.objective.schedule
            raise UserError(f"SDESampler.diffusion: 'sbdm' is infinite at t = 1 on the {schedule} path: use 'sigma'")
        if 0 < predictor.t_end < self.last_step_size:
            raise UserError(
                f"sample.t_end: the last step goes from {self.last_step_size} to 0: set t_end to 0, or to "
                f"{self.last_step_size} or more"
            )
        t_start, t_last = predictor.t_start, max(self.last_step_size, predictor.t_last)
        if t_last >= t_start:
            raise UserError(f"SDESampler.last_step_size: {t_last} must be less than the start time {t_start}: lower it")
        shift = predictor.time_shift(self.time_shift)
        grid = time_grid(self.num_steps, start=t_start, last=t_last, end=predictor.t_end, shift=shift)
        is_regular = t_last == predictor.t_end
        for t, t_next in pairwise(grid if is_regular else grid[:-1]):
            x_t = self._step(predictor, x_t, t, t_next, generators)
        return x_t if is_regular else self._final_step(predictor, x_t, grid[-2])

    def _step(
        self, predictor: Predictor, x_t: Tensor, t: float, t_next: float, generators: list[torch.Generator]
    ) -> Tensor:
        noise = randn_per_sample(generators, tuple(x_t.shape[1:]), device=x_t.device).to(x_t.dtype)
        w, w_next = self._w(t, predictor.objective), self._w(t_next, predictor.objective)
        drift = self._drift(predictor, x_t, t, w)
        if self.method == "euler_maruyama":
            return x_t + (t_next - t) * drift + math.sqrt(w * (t - t_next)) * noise
        # With the trapezoidal rule for w, the variance added in a step is correct to second order.
        kick = math.sqrt((w + w_next) / 2 * (t - t_next)) * noise
        drift_next = self._drift(predictor, x_t + (t_next - t) * drift + kick, t_next, w_next)
        return x_t + (t_next - t) / 2 * (drift + drift_next) + kick

    def _final_step(self, predictor: Predictor, x_t: Tensor, t: float) -> Tensor:
        if self.last_step == "tweedie":
            return predictor(x_t, t).data
        w = self._w(t, predictor.objective) if self.last_step == "mean" else 0.0
        return x_t - t * self._drift(predictor, x_t, t, w)

    def _drift(self, predictor: Predictor, x_t: Tensor, t: float, w: float) -> Tensor:
        prediction = predictor(x_t, t)
        return prediction.velocity - w / 2 * prediction.score if w > 0 else prediction.velocity

    def _w(self, t: float, objective: Objective) -> float:
        return self.diffusion_scale * diffusion_coefficient(self.diffusion, t, objective.path)


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"SDESampler.{option}: unknown {value!r}: choose one of {', '.join(choices)}")
