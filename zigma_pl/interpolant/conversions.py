"""Exact conversions between velocity, score, noise and data at a known x_t.

x_t and each of the four quantities are linear combinations of (data, noise); the score is -noise / sigma (stochastic
interpolants, arXiv:2303.08797; SiT, arXiv:2401.08740, Sec. 2). Given x_t and one quantity, a 2 x 2 system determines
the others. The same holds for their conditional means, which networks predict.

A conversion is singular, with an infinite or NaN result:
- to or from velocity at t = 0 on the VP path;
- to score at t = 0;
- from noise or score, to velocity or data, at t = 1 on the linear and GVP paths;
- from data, to anything, at t = 0.
"""

from typing import Literal

from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.interpolant.schedules import PathCoefficients, Schedule

Quantity = Literal["velocity", "score", "noise", "data"]


def coefficients_like(x: Tensor, t: Tensor, schedule: Schedule) -> PathCoefficients:
    """Return the coefficients at `t`, (B,) or a scalar, in x's dtype and broadcastable to `x`, (B, ...).

    Raises: UserError if the number of times is not the batch size.
    """
    if t.ndim > 1 or (t.ndim == 1 and t.shape[0] != x.shape[0]):
        raise UserError(f"t: expected shape ({x.shape[0]},), one time per sample, got {tuple(t.shape)}")
    shape = (-1,) + (1,) * (x.ndim - 1)
    return PathCoefficients(*(value.to(x.dtype).reshape(shape) for value in schedule.coefficients(t)))


def interpolate(x_data: Tensor, x_noise: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """Return x_t = alpha_t x_data + sigma_t x_noise; x_data and x_noise (B, ...) of equal shape, t (B,) in [0, 1].

    Raises: UserError on mismatched shapes.
    """
    if x_data.shape != x_noise.shape:
        raise UserError(f"x_noise: shape {tuple(x_noise.shape)} differs from x_data's {tuple(x_data.shape)}")
    path = coefficients_like(x_data, t, schedule)
    return path.alpha * x_data + path.sigma * x_noise


def convert(value: Tensor, x_t: Tensor, t: Tensor, schedule: Schedule, *, source: Quantity, target: Quantity) -> Tensor:
    """Convert the `source` quantity at (x_t, t) to the `target` quantity, in x_t's dtype.

    Args:
        value: (B, ...), the source quantity, any floating dtype.
        x_t: (B, ...), the point on the path; float32 or float64.
        t: (B,) in [0, 1], or a scalar tensor.
        schedule: the path.
        source: the quantity in `value`.
        target: the quantity to return.

    Raises: UserError on mismatched shapes.
    """
    if value.shape != x_t.shape:
        raise UserError(f"{source}: shape {tuple(value.shape)} differs from x_t's {tuple(x_t.shape)}")
    value = value.to(x_t.dtype)
    if source == target:
        return value
    path = coefficients_like(x_t, t, schedule)
    if source == "score":
        value, source = -path.sigma * value, "noise"
    if target == "score":
        return -_solve(value, x_t, path, source, "noise") / path.sigma
    return _solve(value, x_t, path, source, target)


def _solve(value: Tensor, x_t: Tensor, path: PathCoefficients, source: Quantity, target: Quantity) -> Tensor:
    """Solve target = on_x x_t + on_value value for both factors by matching the data and noise parts."""
    if source == target:
        return value
    source_data, source_noise = _data_and_noise_part(source, path)
    target_data, target_noise = _data_and_noise_part(target, path)
    determinant = path.alpha * source_noise - path.sigma * source_data
    on_x = (target_data * source_noise - target_noise * source_data) / determinant
    on_value = (path.alpha * target_noise - path.sigma * target_data) / determinant
    return on_x * x_t + on_value * value


def _data_and_noise_part(quantity: Quantity, path: PathCoefficients) -> tuple[Tensor | float, Tensor | float]:
    if quantity == "velocity":
        return path.d_alpha, path.d_sigma
    return (1.0, 0.0) if quantity == "data" else (0.0, 1.0)
