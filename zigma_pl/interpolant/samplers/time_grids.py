"""The times at which a fixed-step sampler stops on its way from noise to data."""

from zigma_pl.core.ranges import check_numbers, check_whole_numbers

MAX_STEPS = 1_000_000


def check_steps(owner: str, num_steps: int, time_shift: float) -> None:
    """Check the two options every fixed-step sampler has.

    Raises: UserError naming `owner` and the option.
    """
    check_whole_numbers(owner, most=MAX_STEPS, num_steps=num_steps)
    check_numbers(owner, above=0, most=1e6, time_shift=time_shift)


def shift_time(t: float, shift: float) -> float:
    """Return shift t / (1 + (shift - 1) t), which keeps 0 and 1 and for shift > 1 nears noise (arXiv:2403.03206)."""
    return shift * t / (1 + (shift - 1) * t)


def time_grid(num_steps: int, *, start: float = 1.0, last: float = 0.0, shift: float = 1.0) -> list[float]:
    """Return num_steps + 1 falling times from `start` to 0.

    Args:
        num_steps: steps, >= 1, the one that ends at 0 included.
        start: first time, in (last, 1].
        last: time at which the final step begins when that one is special, its place in the grid being fixed; 0 for a
            grid that reaches 0 evenly. With a single step the final step begins at `start`.
        shift: 1 for an even grid, > 1 for more steps near noise; see `shift_time`.
    """
    assert num_steps >= 1
    assert 0 <= last < start <= 1
    num_even = num_steps - 1 if last > 0 else num_steps
    fractions = [shift_time(1 - index / max(num_even, 1), shift) for index in range(num_even + 1)]
    times = [last + (start - last) * fraction for fraction in fractions]
    return [*times, 0.0] if last > 0 else times
