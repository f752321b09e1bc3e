"""Time grids of fixed-step samplers."""

import math

import torch
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_numbers, check_whole_numbers
from zigma_pl.interpolant.objective import shift_time
from zigma_pl.interpolant.schedules import Schedule

MAX_STEPS = 1_000_000


def check_steps(owner: str, num_steps: int, time_shift: float | None) -> None:
    """Check the options that all fixed-step samplers have; `time_shift` may be None for the objective's.

    Raises: UserError that names `owner` and the option.
    """
    check_whole_numbers(owner, most=MAX_STEPS, num_steps=num_steps)
    check_numbers(owner, above=0, most=1e6, time_shift=time_shift)


def time_grid(
    num_steps: int, *, start: float = 1.0, last: float = 0.0, end: float = 0.0, shift: float = 1.0
) -> list[float]:
    """Return num_steps + 1 decreasing times from `start` to `end`.

    Args:
        num_steps: number of steps, >= 1, including the last one.
        start: first time, in (last, 1].
        last: fixed start time of the last step, for samplers that treat it specially. If it is not above `end`, the
            grid is uniform down to `end`. With a single step, the last step starts at `start`.
        end: final time, in [0, start).
        shift: 1 for a uniform grid, > 1 for more steps near noise; see `shift_time`.
    """
    assert num_steps >= 1
    last = max(last, end)
    assert 0 <= end <= last < start <= 1
    num_even = num_steps - 1 if last > end else num_steps
    fractions = [shift_time(1 - index / max(num_even, 1), shift) for index in range(num_even + 1)]
    times = [last + (start - last) * fraction for fraction in fractions]
    return [*times, end] if last > end else times


def log_ratio(alpha: float, sigma: float) -> float:
    """Return lambda = log(alpha / sigma): infinite for sigma = 0, minus infinity for alpha = 0."""
    if alpha == 0 or sigma == 0:
        return math.inf if sigma == 0 else -math.inf
    return math.log(alpha / sigma)


def lambda_grid(
    num_steps: int, path: Schedule, *, start: float, last: float, end: float, lambda_range: tuple[float, float]
) -> list[float]:
    """Return num_steps + 1 falling times from `start` to `end` at which lambda = log(alpha / sigma) rises evenly.

    Args:
        num_steps: steps, >= 1, including the final one.
        path: the path, which gives lambda.
        start: first time, in (last, 1].
        last: lowest time at which the final step may begin, if `end` is 0 and its lambda infinite; otherwise `end`.
        end: final time, in [0, start).
        lambda_range: lambda at which the even steps start, unless that of `start` is higher; and lambda at which the
            final step begins, unless that of `last` is lower. With `end` > 0 the even steps end at the lambda of `end`.

    Raises: UserError if the range has no part between `start` and `last`.
    """
    low = max(log_ratio(*path.weights(start)), lambda_range[0])
    high = log_ratio(*path.weights(last))
    if end == 0:
        high = min(high, lambda_range[1])
    num_even = num_steps if end > 0 else num_steps - 1
    if num_even == 0:
        return [start, end]
    if low >= high:
        raise UserError(
            f"MultistepSampler.lambda_range: {tuple(lambda_range)} has no part between times {start:g} and {last:g}: "
            "widen it, or use 'time' spacing"
        )
    lambdas = torch.linspace(low, high, num_even + 1, dtype=torch.float64)[1:]
    times = [start, *(max(t, last) for t in _times_of(lambdas, path))]  # rounding must not take them below
    return [*times[:-1], end] if end > 0 else [*times, end]


def _times_of(lambdas: Tensor, path: Schedule) -> list[float]:
    """Return the time of each lambda, by bisection: lambda falls with t on every path."""
    low, high = torch.zeros_like(lambdas), torch.ones_like(lambdas)
    for _ in range(60):
        middle = (low + high) / 2
        coefficients = path.coefficients(middle)
        is_above = coefficients.alpha.log() - coefficients.sigma.log() > lambdas
        low, high = torch.where(is_above, middle, low), torch.where(is_above, high, middle)
    return ((low + high) / 2).tolist()
