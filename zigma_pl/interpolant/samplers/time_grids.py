"""Time grids of fixed-step samplers."""

from zigma_pl.core.ranges import check_numbers, check_whole_numbers

MAX_STEPS = 1_000_000


def check_steps(owner: str, num_steps: int, time_shift: float) -> None:
    """Check the options that all fixed-step samplers have.

    Raises: UserError that names `owner` and the option.
    """
    check_whole_numbers(owner, most=MAX_STEPS, num_steps=num_steps)
    check_numbers(owner, above=0, most=1e6, time_shift=time_shift)


def shift_time(t: float, shift: float) -> float:
    """Return shift t / (1 + (shift - 1) t), which is closer to noise for shift > 1 (arXiv:2403.03206)."""
    return shift * t / (1 + (shift - 1) * t)


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
