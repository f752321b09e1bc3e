import pytest

from zigma_pl.core.errors import UserError
from zigma_pl.interpolant.objective import shift_time
from zigma_pl.interpolant.samplers.time_grids import check_steps, time_grid


def test_even_grid() -> None:
    assert time_grid(4) == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_grid_with_a_fixed_last_step() -> None:
    assert time_grid(4, last=0.1) == pytest.approx([1.0, 0.7, 0.4, 0.1, 0.0])
    assert time_grid(1, start=0.9, last=0.1) == pytest.approx([0.9, 0.0])


def test_shift_moves_inner_times_towards_noise_and_keeps_the_ends() -> None:
    shifted = time_grid(4, shift=3.0)
    assert shifted == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])
    assert shift_time(0.3, 1.0) == pytest.approx(0.3)


@pytest.mark.parametrize(("num_steps", "time_shift"), [(0, 1.0), (5, 0.0), (5, float("nan")), (5, float("inf"))])
def test_bad_numbers_name_the_option(num_steps: int, time_shift: float) -> None:
    with pytest.raises(UserError, match=r"ODESampler\.(num_steps|time_shift)"):
        check_steps("ODESampler", num_steps, time_shift)
