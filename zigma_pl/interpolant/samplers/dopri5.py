"""Adaptive Dormand-Prince integration with a step size per sample.

A solver that treats the batch as one system chooses one step size from the error of all samples, so that a sample
depends on the others in its batch. Here each row has its own time, step and error, since the network takes one time per
sample; rows share only the network calls. Method: Dormand and Prince (1980); step size control: Hairer, Norsett and
Wanner, Solving Ordinary Differential Equations I, Sec. II.4.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from zigma_pl.core.errors import UserError

_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGE_WEIGHTS = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
# Fifth-order weights, which are those of the last stage, minus the embedded fourth-order weights.
_ERROR_WEIGHTS = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
_SAFETY, _SMALLEST_FACTOR, _LARGEST_FACTOR, _SMALLEST_STEP = 0.9, 0.2, 10.0, 1e-6


def integrate_dopri5(
    velocity: Callable[[Tensor, Tensor], Tensor], x: Tensor, t_start: float, t_end: float, *, atol: float, rtol: float
) -> Tensor:
    """Integrate dx/dt = velocity(x, t) from t_start to t_end, in either direction, with separate steps per sample.

    Args:
        velocity: velocity(x (B, ...), t (B,)) -> (B, ...). Finished rows are still passed, at t_end.
        x: (B, ...) state at t_start.
        t_start: start time.
        t_end: end time.
        atol: absolute tolerance of a step, for the root mean square over a sample.
        rtol: tolerance relative to the state.

    Raises: UserError if a step size vanishes, for example because an output is not finite.
    """
    direction = 1.0 if t_end > t_start else -1.0
    t = torch.full((x.shape[0],), t_start, dtype=x.dtype, device=x.device)
    end = torch.full_like(t, t_end)
    slope = velocity(x, t)
    step = _first_step(x, slope, abs(t_end - t_start), atol, rtol)
    while bool((t != end).any()):
        distance = (t - end).abs()
        is_last = step >= distance
        step = torch.where(is_last, distance, step)
        x_next, slope_next, error = _try_step(velocity, x, t, direction * step, slope, end)
        tolerance = atol + rtol * torch.maximum(x.abs(), x_next.abs())
        error_ratio = _rms(error / tolerance)
        accepted = error_ratio <= 1
        t = torch.where(accepted, torch.where(is_last, end, t + direction * step), t)
        x, slope = (torch.where(_rows(accepted, x), new, old) for new, old in ((x_next, x), (slope_next, slope)))
        step = step * (_SAFETY * error_ratio**-0.2).clamp(_SMALLEST_FACTOR, _LARGEST_FACTOR)
        _check_progress(step, t, end)
    return x


def _first_step(x: Tensor, slope: Tensor, span: float, atol: float, rtol: float) -> Tensor:
    """Return a hundredth of |state| / |slope|, both relative to the tolerance, at most a tenth of the span."""
    tolerance = atol + rtol * x.abs()
    slope_size = _rms(slope / tolerance).clamp(min=1e-12)  # no division of 0 by 0 if state and slope are zero
    return (0.01 * _rms(x / tolerance) / slope_size).clamp(1e-4 * span, 0.1 * span)


def _try_step(
    velocity: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor, step: Tensor, slope: Tensor, end: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the state after one step, the slope there, and the estimated error, given the slope at the start.

    The step is negative if time decreases. Stages do not exceed the end time, despite rounding.
    """
    slopes, step_of_rows = [slope], _rows(step, x)
    x_stage = x
    for node, weights in zip(_NODES, _STAGE_WEIGHTS, strict=True):
        x_stage = x + step_of_rows * _weighted_sum(weights, slopes)
        t_stage = t + node * step
        t_stage = torch.where(step > 0, t_stage.minimum(end), t_stage.maximum(end))
        slopes.append(velocity(x_stage, t_stage))
    return x_stage, slopes[-1], step_of_rows * _weighted_sum(_ERROR_WEIGHTS, slopes)


def _weighted_sum(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    total = weights[0] * slopes[0]
    for weight, slope in zip(weights[1:], slopes[1:], strict=True):
        total = total + weight * slope
    return total


def _check_progress(step: Tensor, t: Tensor, end: Tensor) -> None:
    stuck = (t != end) & ~(step >= _SMALLEST_STEP)  # also True for a NaN step
    if bool(stuck.any()):
        raise UserError(
            f"dopri5: the step size vanished at t = {t[stuck][0].item():.4g}, as the network's output is not finite or "
            "the tolerances are too small: increase atol and rtol, or use heun"
        )


def _rms(value: Tensor) -> Tensor:
    return value.flatten(1).square().mean(1).sqrt()


def _rows(per_sample: Tensor, like: Tensor) -> Tensor:
    return per_sample.reshape(-1, *(1,) * (like.ndim - 1))
