"""Sampling from and to other times than 1 and 0, and encoding of data."""

import pytest
import torch

from zigma_pl.core.errors import UserError
from zigma_pl.core.randomness import randn_per_sample, sample_generators
from zigma_pl.interpolant import Objective
from zigma_pl.samplers import MultistepSampler, ODESampler, SDESampler

SAMPLERS = {
    "euler": ODESampler("euler", 12),
    "heun": ODESampler("heun", 12),
    "dopri5": ODESampler("dopri5"),
    "sde": SDESampler("euler_maruyama", 12),
    "sde_heun": SDESampler("heun", 12),
    "dpmsolver++": MultistepSampler("dpmsolver++", 2, 12),
    "unipc": MultistepSampler("unipc", 3, 12, "lambda"),
}
X_DATA = torch.linspace(-1, 1, 8).reshape(4, 1, 2, 1)
X_NOISE = torch.randn(4, 1, 2, 1, generator=torch.Generator().manual_seed(0))


def generators():
    return sample_generators(0, "sample", range(4))


@pytest.mark.parametrize("schedule", ["linear", "gvp", "vp"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_sampling_starts_from_the_mixture_of_data_and_noise(gaussian, name, schedule) -> None:
    objective = Objective(schedule)
    network, states = gaussian(objective), []

    def recording(x_t, t):
        states.append(x_t)
        return network(x_t, t)

    result = SAMPLERS[name].sample(
        recording, X_NOISE, objective=objective, generators=generators(), x_data=X_DATA, t_start=0.6
    )
    alpha, sigma = objective.path.weights(0.6)
    torch.testing.assert_close(states[0], alpha * X_DATA + sigma * X_NOISE)
    assert torch.cat(network.times).max() == torch.tensor(0.6)
    assert result.x_data.isfinite().all()
    assert result.num_network_calls == len(states)


@pytest.mark.parametrize("name", ["euler", "heun", "dopri5", "dpmsolver++", "unipc"])
def test_a_stop_at_t_end_is_on_the_exact_path(gaussian, name) -> None:
    network = gaussian()
    result = SAMPLERS[name].sample(network, X_NOISE.double(), objective=Objective(), t_end=0.3)
    tolerance = {"euler": 0.07}.get(name, 0.02)
    torch.testing.assert_close(result.x_data, network.state(0.3, X_NOISE.double()), atol=tolerance, rtol=0)
    assert torch.cat(network.times).min() >= 0.3
    continued = ODESampler("dopri5").solve(network, result.x_data, objective=Objective(), t_start=0.3)
    torch.testing.assert_close(continued.x_data, 0.7 + 0.5 * X_NOISE.double(), atol=2 * tolerance, rtol=0)


@pytest.mark.parametrize(("name", "calls"), [("euler", 12), ("heun", 24), ("sde", 12), ("sde_heun", 24), ("unipc", 12)])
def test_the_steps_share_the_remaining_time(gaussian, name, calls) -> None:
    network = gaussian()
    result = SAMPLERS[name].solve(
        network, X_NOISE, objective=Objective(), generators=generators(), t_start=0.8, t_end=0.2
    )
    assert result.num_network_calls == len(network.times) == calls


def test_a_stochastic_sampler_stops_with_the_exact_moments(gaussian) -> None:
    generators = sample_generators(0, "sample", range(3000))
    x_noise = randn_per_sample(generators, (1, 1, 1))
    network = gaussian()
    x_t = SDESampler(num_steps=40).sample(network, x_noise, objective=Objective(), generators=generators, t_end=0.5)
    mean, std = 0.5 * 0.7, (0.25 * 0.25 + 0.25) ** 0.5
    assert x_t.x_data.mean().item() == pytest.approx(mean, abs=0.03)
    assert x_t.x_data.std().item() == pytest.approx(std, abs=0.02)


@pytest.mark.parametrize("name", SAMPLERS)
def test_default_times_change_nothing(gaussian, name) -> None:
    options = {"objective": Objective(), "generators": generators()}
    default = SAMPLERS[name].sample(gaussian(), X_NOISE, **options).x_data
    options["generators"] = generators()
    stated = SAMPLERS[name].sample(gaussian(), X_NOISE, **options, x_data=X_DATA, t_start=1.0, t_end=0.0).x_data
    assert torch.equal(default, stated), "on the linear path no data is left at t = 1"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"t_start": 0.5}, "x_data"),
        ({"t_start": 0.5, "x_data": X_DATA[:2]}, "x_data"),
        ({"t_start": 0.0, "x_data": X_DATA}, "t_start"),
        ({"t_start": 1.1, "x_data": X_DATA}, "t_start"),
        ({"t_start": 0.5, "t_end": 0.5, "x_data": X_DATA}, "t_end"),
        ({"t_end": -0.1}, "t_end"),
        ({"t_end": 1.0}, "t_end"),
    ],
)
def test_bad_times_are_named(gaussian, options, name) -> None:
    with pytest.raises(UserError, match=name):
        ODESampler().sample(gaussian(), X_NOISE, objective=Objective(), **options)


def test_ends_that_a_sampler_cannot_reach_are_named(gaussian) -> None:
    objective = Objective(prediction="score")
    with pytest.raises(UserError, match=r"t_end.*0\.001"):
        ODESampler().sample(gaussian(objective), X_NOISE, objective=objective, t_end=0.0005)
    with pytest.raises(UserError, match=r"t_end.*0\.04"):
        SDESampler().sample(gaussian(), X_NOISE, objective=Objective(), generators=generators(), t_end=0.03)


# ----------------------------------------------------------------------------------------------------------- encoding
@pytest.mark.parametrize("prediction", ["velocity", "score", "noise", "data"])
@pytest.mark.parametrize("schedule", ["linear", "gvp", "vp"])
def test_data_is_encoded_to_the_noise_of_the_exact_solution(gaussian, schedule, prediction) -> None:
    objective = Objective(schedule, prediction)
    network, x_noise = gaussian(objective), X_NOISE.double()
    result = ODESampler("dopri5", rtol=1e-6).encode(network, 0.7 + 0.5 * x_noise, objective=objective)
    # VP leaves 0.0066 of the data at t = 1. Where the range of times starts at 0.001, so does the integration.
    torch.testing.assert_close(result.x_noise, x_noise, atol=0.02 if schedule == "vp" else 0.002, rtol=0)
    assert result.num_network_calls == len(network.times)


@pytest.mark.parametrize("schedule", ["linear", "gvp", "vp"])
def test_encoded_data_is_sampled_again(schedule) -> None:
    objective = Objective(schedule, time_margin=1e-4)

    def network(x_t, t):
        return torch.sin(2 * x_t) * (0.2 + t).reshape(-1, 1, 1, 1)

    sampler, x_data = ODESampler("dopri5", rtol=1e-8, atol=1e-8), X_DATA.double()
    encoded = sampler.encode(network, x_data, objective=objective)
    decoded = sampler.sample(network, encoded.x_noise, objective=objective)
    assert (encoded.x_noise - x_data).abs().max() > 0.1
    torch.testing.assert_close(decoded.x_data, x_data, atol=0.005 if schedule == "vp" else 1e-5, rtol=0)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_the_error_of_a_round_trip_falls_with_the_steps(gaussian, method, order) -> None:
    network, errors = gaussian(), []
    for num_steps in (40, 80):
        sampler = ODESampler(method, num_steps, time_shift=2.0)
        encoded = sampler.encode(network, X_DATA.double(), objective=Objective())
        assert encoded.num_network_calls == order * num_steps
        decoded = sampler.sample(network, encoded.x_noise, objective=Objective()).x_data
        errors.append((decoded - X_DATA).abs().max().item())
    assert errors[0] / errors[1] > 0.9 * 2**order  # Heun's errors on both ways cancel in part


def test_encoding_can_stop_on_the_way(gaussian) -> None:
    network, x_noise = gaussian(), X_NOISE.double()
    sampler = ODESampler("dopri5", rtol=1e-7, atol=1e-8)
    middle = sampler.encode(network, 0.7 + 0.5 * x_noise, objective=Objective(), t_end=0.4).x_noise
    torch.testing.assert_close(middle, network.state(0.4, x_noise), atol=1e-4, rtol=0)
    data = sampler.solve(network, middle, objective=Objective(), t_start=0.4).x_data
    torch.testing.assert_close(data, 0.7 + 0.5 * x_noise, atol=1e-4, rtol=0)


def test_bad_ends_of_encoding_are_named(gaussian) -> None:
    for t_end in (0.0, 1.5):
        with pytest.raises(UserError, match=r"encode\.t_end"):
            ODESampler().encode(gaussian(), X_DATA, objective=Objective(), t_end=t_end)
    with pytest.raises(UserError, match="x_data"):
        ODESampler().encode(gaussian(), torch.zeros(3), objective=Objective())
