import itertools
import math

import pytest
import torch

from zigma_pl.core.errors import UserError
from zigma_pl.interpolant import Objective
from zigma_pl.interpolant.samplers.dopri5 import integrate_dopri5
from zigma_pl.samplers import ODESampler

SCHEDULES = ["linear", "gvp", "vp"]
PREDICTIONS = ["velocity", "score", "noise"]


def noise_batch(batch_size=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch_size, 2, 3, 1, generator=generator, dtype=dtype)


@pytest.mark.parametrize(("t_start", "t_end"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 2.0), (0.3, 0.3)])
def test_dopri5_integrates_in_either_direction(t_start, t_end) -> None:
    """Kind: an interval in reverse order."""
    x = noise_batch(dtype=torch.float64)
    times = []

    def velocity(x, t):
        times.append(t)
        return -x * (1 + 2 * t).reshape(-1, *(1,) * (x.ndim - 1))

    found = integrate_dopri5(velocity, x, t_start, t_end, atol=1e-9, rtol=1e-9)
    exact = x * math.exp(t_start + t_start**2 - t_end - t_end**2)
    torch.testing.assert_close(found, exact, atol=1e-7, rtol=1e-6)
    times = torch.cat(times)
    assert min(t_start, t_end) <= times.min()
    assert times.max() <= max(t_start, t_end)


@pytest.mark.parametrize(("schedule", "prediction"), list(itertools.product(SCHEDULES, PREDICTIONS)))
@pytest.mark.parametrize("method", ["euler", "heun", "dopri5"])
def test_noise_is_transported_to_the_target_gaussian(gaussian, method, schedule, prediction) -> None:
    objective = Objective(schedule=schedule, prediction=prediction)
    x_noise = noise_batch()
    sampler = ODESampler(method, num_steps=400 if method == "euler" else 60, rtol=1e-5)
    x_data = sampler.sample(gaussian(objective), x_noise, objective=objective).x_data
    # The exact flow of a Gaussian is affine. VP leaves alpha(1) = 0.0066 of the mean out of its start.
    tolerance = 0.02 if schedule == "vp" else 0.005
    torch.testing.assert_close(x_data, 0.7 + 0.5 * x_noise, atol=tolerance, rtol=0)


@pytest.mark.parametrize("schedule", ["linear", "gvp"])
@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_order_of_convergence(gaussian, schedule, method, order) -> None:
    objective = Objective(schedule=schedule)
    x_noise = noise_batch(dtype=torch.float64)
    errors = [
        (
            ODESampler(method, steps).sample(gaussian(objective), x_noise, objective=objective).x_data
            - (0.7 + 0.5 * x_noise)
        )
        .abs()
        .max()
        .item()
        for steps in (40, 80)
    ]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


def test_dopri5_keeps_to_its_tolerance_and_beats_heun(gaussian) -> None:
    x_noise = noise_batch(dtype=torch.float64)
    objective = Objective()
    errors = {}
    for rtol in (1e-3, 1e-6, 1e-9):
        result = ODESampler("dopri5", rtol=rtol, atol=rtol / 10).sample(gaussian(), x_noise, objective=objective)
        errors[rtol] = (result.x_data - (0.7 + 0.5 * x_noise)).abs().max().item()
        assert errors[rtol] < 10 * rtol
    assert result.num_network_calls < 400


def test_dopri5_agrees_with_torchdiffeq_on_a_nonlinear_field() -> None:
    def network(x_t, t):
        return torch.sin(3 * x_t) * t.reshape(-1, 1, 1, 1) + x_t.cos()

    x_noise = noise_batch(dtype=torch.float64)
    results = [
        ODESampler("dopri5", atol=1e-9, rtol=1e-9, error_control=control).sample(
            network, x_noise, objective=Objective()
        )
        for control in ("per_sample", "batch")
    ]
    torch.testing.assert_close(results[0].x_data, results[1].x_data, atol=1e-7, rtol=0)
    assert not torch.equal(results[0].x_data, x_noise)


@pytest.mark.parametrize(
    ("method", "schedule", "prediction", "calls"),
    [
        ("euler", "linear", "velocity", 50),
        ("heun", "linear", "velocity", 100),
        ("euler", "vp", "noise", 50),
        ("heun", "vp", "velocity", 99),
        ("euler", "linear", "noise", 50),
        ("heun", "linear", "score", 99),
    ],
)
def test_fifty_steps_make_the_stated_calls(gaussian, method, schedule, prediction, calls) -> None:
    objective = Objective(schedule=schedule, prediction=prediction)
    network = gaussian(objective)
    result = ODESampler(method, 50).sample(network, noise_batch(), objective=objective)
    assert result.num_network_calls == len(network.times) == calls


@pytest.mark.parametrize(("method", "schedule"), list(itertools.product(["euler", "heun", "dopri5"], SCHEDULES)))
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_network_sees_only_times_in_range(gaussian, method, schedule, prediction) -> None:
    objective = Objective(schedule=schedule, prediction=prediction)
    network = gaussian(objective)
    result = ODESampler(method, 7).sample(network, noise_batch(), objective=objective)
    times = torch.stack(network.times)
    low, high = objective.time_range
    assert times.shape == (result.num_network_calls, 8)
    assert times.min() >= torch.tensor(low)
    assert times.max() <= torch.tensor(high)
    assert torch.isfinite(result.x_data).all()


@pytest.mark.parametrize("method", ["euler", "heun", "dopri5"])
@pytest.mark.parametrize(("schedule", "prediction"), [("vp", "velocity"), ("gvp", "score")])
def test_where_the_range_stops_short_the_expected_data_is_returned(gaussian, method, schedule, prediction) -> None:
    objective = Objective(schedule, prediction, time_margin=0.2)
    network = gaussian(objective, std=1e-3)  # almost one point, so the expected data is the same from everywhere
    x_data = ODESampler(method, 20).sample(network, noise_batch(), objective=objective).x_data
    torch.testing.assert_close(x_data, torch.full_like(x_data, 0.7), atol=1e-3, rtol=0)


@pytest.mark.parametrize("method", ["euler", "heun", "dopri5"])
def test_samples_do_not_depend_on_the_batch(method) -> None:
    def network(x_t, t):  # stiffness differs between samples, so a shared step size would show
        return 20 * torch.sin(x_t * x_t.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)) * t.reshape(-1, 1, 1, 1)

    x_noise = noise_batch()
    sampler = ODESampler(method, 10)
    together = sampler.sample(network, x_noise, objective=Objective()).x_data
    halves = [sampler.sample(network, half, objective=Objective()).x_data for half in x_noise.split(4)]
    torch.testing.assert_close(together, torch.cat(halves), atol=1e-6, rtol=0)


def test_state_stays_float32_when_the_network_returns_bfloat16() -> None:
    seen = []

    def network(x_t, t):
        seen.append((x_t.dtype, t.dtype, t.shape, torch.is_grad_enabled()))
        return x_t.bfloat16()

    result = ODESampler("heun", 2).sample(network, noise_batch().bfloat16(), objective=Objective())
    assert result.x_data.dtype == torch.float32
    assert set(seen) == {(torch.float32, torch.float32, torch.Size([8]), False)}


def test_time_shift_changes_the_times_only(gaussian) -> None:
    network = gaussian()
    ODESampler("euler", 4, time_shift=3.0).sample(network, noise_batch(), objective=Objective())
    assert [t[0].item() for t in network.times] == pytest.approx([1.0, 0.9, 0.75, 0.5])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"method": "rk4"}, "method"),
        ({"num_steps": 0}, "num_steps"),
        ({"error_control": "row"}, "error_control"),
        ({"atol": 0.0}, "atol"),
        ({"rtol": -1.0}, "rtol"),
        ({"time_shift": -1.0}, "time_shift"),
    ],
)
def test_bad_options_are_named(options, word) -> None:
    with pytest.raises(UserError, match=word):
        ODESampler(**options)


def test_bad_inputs_are_named(gaussian) -> None:
    objective = Objective()
    with pytest.raises(UserError, match="x_noise"):
        ODESampler().sample(gaussian(), torch.zeros(3), objective=objective)
    with pytest.raises(UserError, match="x_noise"):
        ODESampler().sample(gaussian(), torch.zeros(3, 2, dtype=torch.int64), objective=objective)
    with pytest.raises(UserError, match="output shape"):
        ODESampler().sample(lambda x_t, t: x_t[:, :1], noise_batch(), objective=objective)
    with pytest.raises(UserError, match="generators"):
        ODESampler().sample(gaussian(), noise_batch(), objective=objective, generators=[torch.Generator()])


def test_dopri5_takes_a_network_that_is_zero_from_the_start() -> None:
    x_noise = noise_batch()
    x_noise[3] = 0
    result = ODESampler("dopri5").sample(lambda x_t, t: torch.zeros_like(x_t), x_noise, objective=Objective())
    assert torch.equal(result.x_data, x_noise)


def test_a_network_that_is_not_finite_stops_dopri5() -> None:
    def network(x_t, t):
        return torch.where(t.reshape(-1, 1, 1, 1) < 0.5, torch.nan, x_t)

    with pytest.raises(UserError, match="not finite"):
        ODESampler("dopri5").sample(network, noise_batch(), objective=Objective())
