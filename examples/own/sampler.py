"""The two-step Adams-Bashforth method: second order with one network call per step."""

from itertools import pairwise

import torch
from torch import Tensor

from zigma_pl import UserError
from zigma_pl.samplers import Predictor, Sampler, time_grid


class AdamsBashforth(Sampler):
    """Deterministic sampling; the velocity of a step is extrapolated from the last two network calls.

    Args:
        num_steps: number of steps, and of network calls.
    """

    def __init__(self, num_steps: int = 25) -> None:
        if num_steps < 1:
            raise UserError(f"AdamsBashforth.num_steps: must be 1 or more, got {num_steps}")
        self.num_steps = num_steps

    def integrate(self, predictor: Predictor, x_t: Tensor, generators: list[torch.Generator] | None) -> Tensor:
        """Integrate x_t, (B, ...), from t_start to t_end."""
        t_last, t_end = predictor.t_last, predictor.t_end
        shift = predictor.objective.time_shift  # that of the training times
        grid = time_grid(self.num_steps, start=predictor.t_start, last=t_last, end=t_end, shift=shift)
        slope_before, step_before = None, 0.0
        for t, t_next in pairwise(grid if t_last == t_end else grid[:-1]):
            slope, step = predictor(x_t, t).velocity, t_next - t
            change = 0.0 if slope_before is None else (slope - slope_before) * (step / step_before / 2)
            x_t = x_t + step * (slope + change)
            slope_before, step_before = slope, step
        # If the velocity is infinite at t = 0, the last step returns the predicted data instead.
        return x_t if t_last == t_end else predictor(x_t, grid[-2]).data
