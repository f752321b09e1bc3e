import itertools
import math

import pytest
import torch

from zigma_pl.core.errors import UserError
from zigma_pl.core.randomness import randn_per_sample, sample_generators
from zigma_pl.interpolant import Objective, make_schedule
from zigma_pl.interpolant.samplers import sde as sde_module
from zigma_pl.interpolant.samplers.sde import diffusion_coefficient
from zigma_pl.samplers import ODESampler, SDESampler

DIFFUSIONS = ["sigma", "linear", "constant", "decreasing", "increasing_decreasing"]
CASES = [
    *itertools.product(["linear", "gvp"], DIFFUSIONS),
    *itertools.product(["vp"], [*DIFFUSIONS, "sbdm"]),
]
ENOUGH_STEPS = {"euler_maruyama": 200, "heun": 100}  # for moments within 0.006


@pytest.fixture
def exact_moments(monkeypatch):
    """Mean and standard deviation of a sampler's output, without a random number.

    With an affine network the output is affine in the noises. Row 0 of the batch has no noise at all, row 1 a unit
    starting noise, and row 2 + k a unit noise at step k: their differences from row 0 are the responses, whose squares
    add up to the variance.
    """

    def measure(sampler, network, objective):
        num_rows = sampler.num_steps + 2
        step = itertools.count()

        def unit_noise(generators, shape, *, device="cpu"):
            noise = torch.zeros(num_rows, *shape, dtype=torch.float64)
            noise[2 + next(step)] = 1
            return noise

        monkeypatch.setattr(sde_module, "randn_per_sample", unit_noise)
        x_noise = torch.zeros(num_rows, 1, 1, 1, dtype=torch.float64)
        x_noise[1] = 1
        generators = [torch.Generator()] * num_rows
        x = sampler.sample(network, x_noise, objective=objective, generators=generators).x_data.flatten()
        assert next(step) == sampler.num_steps - 1, "the last step draws no noise"
        return x[0].item(), (x[1:] - x[0]).square().sum().sqrt().item()

    return measure


@pytest.mark.parametrize(("schedule", "diffusion"), CASES)
@pytest.mark.parametrize("method", ["euler_maruyama", "heun"])
def test_every_diffusion_form_keeps_the_target_moments(gaussian, exact_moments, method, schedule, diffusion) -> None:
    objective = Objective(schedule=schedule)
    num_steps = ENOUGH_STEPS[method]
    sampler = SDESampler(method, num_steps, diffusion=diffusion, last_step="euler", last_step_size=0.005)
    assert exact_moments(sampler, gaussian(objective), objective) == pytest.approx((0.7, 0.5), abs=0.006)


@pytest.mark.parametrize(("method", "order"), [("euler_maruyama", 1), ("heun", 2)])
@pytest.mark.parametrize("diffusion", ["sigma", "increasing_decreasing"])
def test_weak_order_of_convergence(gaussian, exact_moments, method, order, diffusion) -> None:
    def std_before_the_last_step(num_steps):
        # The last step does not shrink with the others: the distributions are compared at its start.
        sampler = SDESampler(method, num_steps + 1, diffusion=diffusion, diffusion_scale=2.0, last_step_size=0.1)
        sampler._final_step = lambda predictor, x_t, t: x_t
        return exact_moments(sampler, gaussian(Objective()), Objective())[1]

    exact = math.sqrt(0.9**2 * 0.5**2 + 0.1**2)
    errors = [abs(std_before_the_last_step(num_steps) - exact) for num_steps in (40, 80)]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.15)


@pytest.mark.parametrize("prediction", ["velocity", "score", "noise"])
@pytest.mark.parametrize("method", ["euler_maruyama", "heun"])
def test_exact_networks_of_every_prediction_sample_alike(gaussian, exact_moments, method, prediction) -> None:
    objective = Objective(prediction=prediction)
    sampler = SDESampler(method, ENOUGH_STEPS[method], last_step="euler", last_step_size=0.01)
    assert exact_moments(sampler, gaussian(objective), objective) == pytest.approx((0.7, 0.5), abs=0.006)


def test_random_samples_have_the_target_moments(gaussian) -> None:
    generators = sample_generators(0, "sample", range(2000))
    x_noise = randn_per_sample(generators, (1, 1, 4))
    sampler = SDESampler(num_steps=50, diffusion="sigma", diffusion_scale=2.0, last_step="euler")
    x_data = sampler.sample(gaussian(), x_noise, objective=Objective(), generators=generators).x_data
    assert x_data.mean().item() == pytest.approx(0.7, abs=0.03)
    assert x_data.std().item() == pytest.approx(0.5, abs=0.02)
    correlation = torch.corrcoef(torch.stack([x_noise.flatten(), x_data.flatten()]))[0, 1].item()
    assert correlation < 0.7, "an ODE would give 1: the noise on the way must matter"


def test_scale_zero_is_the_ode(gaussian) -> None:
    x_noise = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    generators = sample_generators(0, "sample", range(4))
    sampler = SDESampler(num_steps=25, diffusion_scale=0.0, last_step_size=0.04)
    stochastic = sampler.sample(gaussian(), x_noise, objective=Objective(), generators=generators)
    deterministic = ODESampler("euler", 25).sample(gaussian(), x_noise, objective=Objective())
    torch.testing.assert_close(stochastic.x_data, deterministic.x_data, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("method", "calls"), [("euler_maruyama", 50), ("heun", 99)])
@pytest.mark.parametrize("last_step", ["mean", "tweedie", "euler"])
def test_fifty_steps_make_the_stated_calls(gaussian, method, calls, last_step) -> None:
    network, generators = gaussian(), sample_generators(0, "sample", range(2))
    sampler = SDESampler(method, 50, last_step=last_step)
    result = sampler.sample(network, torch.zeros(2, 1, 1, 1), objective=Objective(), generators=generators)
    assert result.num_network_calls == len(network.times) == calls
    assert min(t.min().item() for t in network.times) == pytest.approx(0.04)


def test_last_steps_from_closed_forms(gaussian) -> None:
    x_noise, t = torch.full((1, 1, 1, 1), 1.3, dtype=torch.float64), 1.0
    score = -x_noise
    velocity = x_noise - 0.7  # at t = 1, x is pure noise, and only the mean of the data is known
    expected = {
        "euler": x_noise - t * velocity,
        "mean": x_noise - t * (velocity - score / 2),
        "tweedie": 0.7 + 0 * score,
    }
    for last_step, value in expected.items():
        sampler = SDESampler(num_steps=1, last_step=last_step)
        result = sampler.sample(gaussian(), x_noise, objective=Objective(), generators=[torch.Generator()])
        torch.testing.assert_close(result.x_data, value)


@pytest.mark.parametrize("method", ["euler_maruyama", "heun"])
def test_samples_do_not_depend_on_the_batch(method) -> None:
    def network(x_t, t):
        return torch.sin(3 * x_t) + t.reshape(-1, 1, 1, 1)

    def draw(sample_ids):
        generators = sample_generators(3, "sample", sample_ids)
        x_noise = randn_per_sample(generators, (2, 4, 4))
        return SDESampler(method, 10).sample(network, x_noise, objective=Objective(), generators=generators).x_data

    torch.testing.assert_close(draw(range(8)), torch.cat([draw(range(4)), draw(range(4, 8))]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("schedule", ["linear", "gvp", "vp"])
def test_diffusion_forms(schedule) -> None:
    path = make_schedule(schedule)
    sigma = path.coefficients(torch.tensor(0.25, dtype=torch.float64)).sigma.item()
    values = [diffusion_coefficient(diffusion, 0.25, path) for diffusion in DIFFUSIONS]
    assert values == pytest.approx([sigma, 0.25, 1.0, (1 - math.cos(math.pi / 4)) ** 2 / 4, 0.5])


def test_sbdm_is_the_diffusion_of_the_vp_process() -> None:
    assert diffusion_coefficient("sbdm", 0.3, make_schedule("vp")) == pytest.approx(0.1 + 0.3 * 19.9)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "milstein"},
        {"diffusion": "increasing"},
        {"last_step": "none"},
        {"diffusion_scale": -1.0},
        {"last_step_size": 0.0},
        {"last_step_size": 1.0},
        {"num_steps": 0},
        {"time_shift": 0.0},
    ],
)
def test_bad_options_are_named(options) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        SDESampler(**options)


def test_bad_combinations_are_named(gaussian) -> None:
    x_noise, generators = torch.zeros(2, 1, 1, 1), [torch.Generator()] * 2
    with pytest.raises(UserError, match="generators"):
        SDESampler().sample(gaussian(), x_noise, objective=Objective())
    with pytest.raises(UserError, match="sbdm"):
        SDESampler(diffusion="sbdm").sample(gaussian(), x_noise, objective=Objective(), generators=generators)
    objective = Objective(prediction="noise", time_margin=0.1)
    with pytest.raises(UserError, match="last_step_size"):
        SDESampler(last_step_size=0.95).sample(gaussian(objective), x_noise, objective=objective, generators=generators)
