import math

import pytest

from zigma_pl.core.errors import UserError
from zigma_pl.optimizers import Constant, Cosine, WarmupStableDecay

NUM_STEPS = 110


def factors(schedule, *steps):
    return [schedule.factor(step, NUM_STEPS) for step in steps]


def test_all_warm_up_linearly():
    for schedule in (Constant(4), Cosine(4), WarmupStableDecay(4, decay_steps=10)):
        assert factors(schedule, 0, 1, 2, 3) == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_after_the_warm_up():
    assert factors(Constant(10), 10, 60, 110) == [1, 1, 1]
    assert factors(Cosine(10), 10, 60, 110) == pytest.approx([1, 0.5, 0])
    assert factors(Cosine(10, final_factor=0.2), 60, 110) == pytest.approx([0.6, 0.2])
    schedule = WarmupStableDecay(10, decay_steps=20, final_factor=0.5)
    assert factors(schedule, 10, 90, 100, 110) == pytest.approx([1, 1, 0.75, 0.5])


def test_cosine_in_closed_form():
    """At quarters of the decay, where a cosine differs from a line."""
    expected = [0.5 + 0.5 * math.cos(math.pi * (step - 10) / 100) for step in range(10, 111)]
    assert factors(Cosine(10), *range(10, 111)) == pytest.approx(expected)
    assert factors(Cosine(10), 35, 85) == pytest.approx([0.5 + 0.5**1.5, 0.5 - 0.5**1.5])
    expected = [0.2 + 0.8 * factor for factor in expected]
    assert factors(Cosine(10, final_factor=0.2), *range(10, 111)) == pytest.approx(expected)


def test_warmup_stable_decay_in_closed_form():
    schedule = WarmupStableDecay(10, decay_steps=20, final_factor=0.5)
    warmup = [(step + 1) / 11 for step in range(10)]
    decay = [1 - 0.5 * done / 20 for done in range(21)]
    assert factors(schedule, *range(111)) == pytest.approx([*warmup, *[1.0] * 80, *decay])


@pytest.mark.parametrize(
    "build",
    [
        lambda: Constant(-1),
        lambda: Cosine(final_factor=1.5),
        lambda: WarmupStableDecay(decay_steps=-1),
        lambda: WarmupStableDecay(final_factor=-0.1),
    ],
)
def test_values_out_of_range(build):
    with pytest.raises(UserError):
        build()
