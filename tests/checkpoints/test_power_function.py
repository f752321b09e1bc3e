"""Profiles of power-function averages, and their combinations."""

import math

import numpy as np
import pytest

from zigma_pl.training.checkpoints.power_function import MAX_SIGMA_REL, Profile, combination, decay, exponent_of

NUM_STEPS = 300


def weights(step, sigma_rel):
    """The weight of each step's weights in an average, the integral of its profile over the step."""
    ends = np.arange(NUM_STEPS + 1).clip(max=step) / step
    return np.diff(ends ** (exponent_of(sigma_rel) + 1))


@pytest.mark.parametrize(("sigma_rel", "exponent"), [(0.05, 16.97), (0.1, 6.94), (MAX_SIGMA_REL, 0.0)])
def test_exponents_of_the_paper(sigma_rel, exponent):
    assert exponent_of(sigma_rel) == pytest.approx(exponent, abs=5e-3)


@pytest.mark.parametrize("sigma_rel", [0.02, 0.05, 0.15, 0.28])
def test_width_of_the_profile(sigma_rel):
    exponent = exponent_of(sigma_rel)
    mean, square = (exponent + 1) / (exponent + 2), (exponent + 1) / (exponent + 3)
    assert math.sqrt(square - mean**2) == pytest.approx(sigma_rel)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.28])
def test_repeated_updates_are_the_average(sigma_rel):
    trajectory = np.random.default_rng(0).normal(size=NUM_STEPS)
    average = math.nan
    for step, value in enumerate(trajectory, start=1):
        factor = decay(step, exponent_of(sigma_rel))
        average = (factor * average if factor else 0.0) + (1 - factor) * value
        if step in (1, 2, 100, NUM_STEPS):
            assert average == pytest.approx(weights(step, sigma_rel) @ trajectory, rel=1e-9)


def test_a_snapshot_is_its_own_combination():
    snapshots = [Profile(step, width) for step in (100, 200, 300) for width in (0.05, 0.1)]
    coefficients, error = combination(snapshots, Profile(300, 0.1))
    assert coefficients == pytest.approx([0, 0, 0, 0, 0, 1], abs=1e-9)
    assert error == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("sigma_rel", "tolerance"), [(0.03, 0.02), (0.065, 2e-3), (0.08, 2e-3), (0.15, 5e-3), (0.2, 0.02)]
)
def test_combinations_of_snapshots_are_close_to_the_average(sigma_rel, tolerance):
    trajectory = np.random.default_rng(0).normal(size=(NUM_STEPS, 64)).cumsum(0)
    snapshots = [Profile(step, width) for step in range(20, NUM_STEPS + 1, 20) for width in (0.05, 0.1)]
    wanted = Profile(NUM_STEPS, sigma_rel)
    coefficients, error = combination(snapshots, wanted)
    assert coefficients.sum() == pytest.approx(1)
    found = sum(c * weights(*snapshot) for c, snapshot in zip(coefficients, snapshots, strict=True)) @ trajectory
    expected = weights(*wanted) @ trajectory
    assert np.linalg.norm(found - expected) < tolerance * np.linalg.norm(expected)
    assert error < 20 * tolerance


def test_the_error_is_that_of_the_profiles():
    snapshots, wanted = [Profile(100, 0.1), Profile(300, 0.1)], Profile(300, 0.2)
    coefficients, error = combination(snapshots, wanted)
    times = (np.arange(300_000) + 0.5) / 1000

    def profile(step, sigma_rel):
        exponent = exponent_of(sigma_rel)
        return np.where(times < step, (exponent + 1) * (times / step) ** exponent / step, 0.0)

    difference = sum(c * profile(*snapshot) for c, snapshot in zip(coefficients, snapshots, strict=True))
    difference = difference - profile(*wanted)
    assert error == pytest.approx(np.linalg.norm(difference) / np.linalg.norm(profile(*wanted)), rel=1e-3)
