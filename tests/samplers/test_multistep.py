import itertools
import math

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from diffusers.schedulers import scheduling_dpmsolver_multistep

from zigma_pl.core.class_paths import build_described, described
from zigma_pl.core.errors import UserError
from zigma_pl.interpolant import Objective
from zigma_pl.interpolant.samplers.multistep import Call, Node, correct, extrapolate
from zigma_pl.samplers import MultistepSampler, ODESampler, Sampler

SCHEDULES = ["linear", "gvp", "vp"]
PREDICTIONS = ["velocity", "score", "noise", "data"]
METHODS = [("dpmsolver++", 1), ("dpmsolver++", 2), ("dpmsolver++", 3), ("unipc", 1), ("unipc", 2), ("unipc", 3)]


def noise_batch(batch_size=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch_size, 2, 3, 1, generator=generator, dtype=dtype)


def sine_network(x_t, t):
    return torch.sin(3 * x_t) + 0.5 * x_t * t.reshape(-1, 1, 1, 1)


# ---------------------------------------------------------------------------------------------------------- diffusers
class Float64Torch:
    """Torch for a scheduler that casts its state to float32."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


class WholeQuadratic(DPMSolverMultistepScheduler):
    """Third order with the whole quadratic term, of which diffusers takes half."""

    def multistep_dpm_solver_third_order_update(self, model_output_list, *, sample, noise=None):
        alphas, sigmas = zip(*map(self._sigma_to_alpha_sigma_t, self.sigmas), strict=True)
        lambdas = [math.log(alpha / sigma) for alpha, sigma in zip(alphas[:-1], sigmas[:-1], strict=True)]
        i = self.step_index
        h, h_0, h_1 = (lambdas[i + 1 - k] - lambdas[i - k] for k in range(3))
        newest, middle, oldest = reversed(model_output_list)
        second_difference = ((newest - middle) / h_0 - (middle - oldest) / h_1) * h**2 / (h_0 + h_1)
        half = alphas[i + 1] * (0.5 - (math.exp(-h) - 1 + h) / h**2) * second_difference
        return super().multistep_dpm_solver_third_order_update(model_output_list, sample=sample, noise=noise) + half


def sampled_by_diffusers(scheduler, sigmas, output, x_t, num_steps):
    scheduler.set_timesteps(num_steps)
    scheduler.set_begin_index(0)
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
    for index in range(num_steps):
        x_t = scheduler.step(output(x_t, index), scheduler.timesteps[index], x_t).prev_sample
    return x_t


@pytest.mark.parametrize("spacing", ["time", "lambda"])
@pytest.mark.parametrize(("method", "order"), METHODS)
@pytest.mark.parametrize(
    ("schedule", "prediction", "diffusers_prediction"),
    [
        ("linear", "velocity", "flow_prediction"),
        ("gvp", "velocity", "v_prediction"),
        ("vp", "noise", "epsilon"),
        ("vp", "data", "sample"),
    ],
)
def test_samples_equal_those_of_diffusers(
    monkeypatch, schedule, prediction, diffusers_prediction, method, order, spacing
):
    monkeypatch.setattr(scheduling_dpmsolver_multistep, "torch", Float64Torch())
    objective, x_t, num_steps = Objective(schedule, prediction), noise_batch(), 10
    times = []

    def network(x_t, t):
        times.append(t[0].item())
        return sine_network(x_t, t)

    sampler = MultistepSampler(method, order, num_steps, spacing)
    sampled = sampler.solve(network, x_t, objective=objective, t_start=0.98).x_data

    weights = [objective.path.weights(t) for t in [*times, 0.0]]
    is_flow = schedule == "linear"
    factor = 2 / math.pi if schedule == "gvp" else 1.0  # of a velocity, to v
    options = {
        "solver_order": order,
        "prediction_type": diffusers_prediction,
        "use_flow_sigmas": is_flow,
        "solver_type": "bh2" if method == "unipc" else "midpoint",
    }
    expected = sampled_by_diffusers(
        (UniPCMultistepScheduler if method == "unipc" else WholeQuadratic)(**options),
        [sigma if is_flow else sigma / alpha for alpha, sigma in weights],
        lambda x_t, index: factor * sine_network(x_t, torch.full((len(x_t),), times[index], dtype=x_t.dtype)),
        x_t,
        num_steps,
    )
    assert len(times) == num_steps
    torch.testing.assert_close(sampled, expected, atol=1e-9, rtol=1e-9)


# -------------------------------------------------------------------------------------------------------------- order
def exact_call(network, log_ratio, x_noise):
    """The call and the exact state at a lambda of the linear path."""
    t = 1 / (1 + math.exp(log_ratio))
    node = Node.at(t, network.objective.path)
    x_t = network.state(t, x_noise)
    velocity = network(x_t, torch.full((len(x_t),), t, dtype=x_t.dtype))
    return Call(node, x_t - t * velocity), x_t


@pytest.mark.parametrize(("corrected", "order"), list(itertools.product([False, True], [1, 2, 3])))
def test_order_of_one_step(gaussian, corrected, order) -> None:
    network, x_noise, errors = gaussian(), noise_batch(), []
    for h in (0.1, 0.05):
        calls, states = zip(*(exact_call(network, -k * h, x_noise) for k in range(order)), strict=True)
        target, exact = exact_call(network, h, x_noise)
        x = correct(states[0], calls, target) if corrected else extrapolate(states[0], calls, target.node)
        errors.append((x - exact).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(2 ** (order + 1 + corrected), rel=0.1)


@pytest.mark.parametrize("schedule", ["linear", "gvp"])
@pytest.mark.parametrize(
    ("method", "order", "factor"), [("dpmsolver++", 1, 2), ("dpmsolver++", 2, 4), ("unipc", 1, 4), ("unipc", 2, 8)]
)
def test_order_of_convergence(gaussian, schedule, method, order, factor) -> None:
    network, x_noise = gaussian(Objective(schedule)), noise_batch()
    ends = {"t_start": 0.9, "t_end": 0.2}
    errors = []
    for num_steps in (80, 160):
        sampler = MultistepSampler(method, order, num_steps, "lambda")
        sampled = sampler.solve(network, network.state(0.9, x_noise), objective=network.objective, **ends).x_data
        errors.append((sampled - network.state(0.2, x_noise)).abs().max().item())
    assert math.log2(errors[0] / errors[1]) > math.log2(factor) - 0.25


@pytest.mark.parametrize(("method", "most"), [("dpmsolver++", 1 / 4), ("unipc", 1 / 10)])
def test_order_three_is_nearer_than_order_two(gaussian, method, most) -> None:
    network, x_noise = gaussian(Objective("gvp")), noise_batch()
    errors = []
    for order in (2, 3):
        sampler = MultistepSampler(method, order, 40, "lambda")
        x_t = network.state(0.9, x_noise)
        sampled = sampler.solve(network, x_t, objective=network.objective, t_start=0.9, t_end=0.2).x_data
        errors.append((sampled - network.state(0.2, x_noise)).abs().max().item())
    assert errors[1] < most * errors[0]


# ------------------------------------------------------------------------------------------------------ whole samples
@pytest.mark.parametrize(("schedule", "prediction"), list(itertools.product(SCHEDULES, PREDICTIONS)))
@pytest.mark.parametrize("spacing", ["time", "lambda"])
@pytest.mark.parametrize("method", ["dpmsolver++", "unipc"])
def test_noise_is_transported_to_the_target_gaussian(gaussian, method, spacing, schedule, prediction) -> None:
    objective = Objective(schedule, prediction)
    network, x_noise = gaussian(objective), noise_batch()
    sampler = MultistepSampler(method, num_steps=30, spacing=spacing, lambda_range=(-5.0, 4.0))
    result = sampler.sample(network, x_noise, objective=objective)
    # The mean's part alpha(1) = 0.0066 of a VP start is left out; its time spacing is coarse near data.
    torch.testing.assert_close(result.x_data, 0.7 + 0.5 * x_noise, atol=0.02 if schedule == "vp" else 0.006, rtol=0)


def test_eight_calls_of_the_best_come_nearer_than_eight_of_euler_or_heun(gaussian) -> None:
    x_noise = noise_batch(64)

    def error(sampler):
        result = sampler.sample(gaussian(), x_noise, objective=Objective())
        assert result.num_network_calls == 8
        return (result.x_data - (0.7 + 0.5 * x_noise)).square().mean().sqrt().item()

    best = error(MultistepSampler("unipc", 3, 8))
    assert best < 0.5 * error(ODESampler("heun", 4))
    assert best < 0.05 * error(ODESampler("euler", 8))


@pytest.mark.parametrize(("method", "order"), METHODS)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 8])
@pytest.mark.parametrize("spacing", ["time", "lambda"])
def test_every_step_is_one_call(gaussian, method, order, num_steps, spacing) -> None:
    network = gaussian()
    result = MultistepSampler(method, order, num_steps, spacing).sample(network, noise_batch(), objective=Objective())
    assert result.num_network_calls == len(network.times) == num_steps
    assert network.times[0].tolist() == [1.0] * 4
    assert result.x_data.isfinite().all()


@pytest.mark.parametrize(("schedule", "prediction"), list(itertools.product(SCHEDULES, PREDICTIONS)))
@pytest.mark.parametrize("time_margin", [0.001, 0.2])
@pytest.mark.parametrize("spacing", ["time", "lambda"])
def test_the_network_sees_only_times_in_range(gaussian, schedule, prediction, spacing, time_margin) -> None:
    objective = Objective(schedule, prediction, time_margin=time_margin)
    network, sampler = gaussian(objective), MultistepSampler("unipc", 2, 7, spacing, lambda_range=(-9.0, 9.0))
    result = sampler.sample(network, noise_batch(1), objective=objective)
    times = torch.cat(network.times)
    low, high = objective.time_range
    assert low <= times.min()
    assert times.max() <= high
    assert (times.diff() < 0).all()
    assert result.x_data.isfinite().all()


@pytest.mark.parametrize("prediction", ["score", "noise", "data"])
def test_all_predictions_of_one_network_sample_alike(gaussian, prediction) -> None:
    sampled = []
    for each in ("velocity", prediction):
        objective = Objective("vp", each)
        network = gaussian(objective)
        sampled.append(MultistepSampler().sample(network, noise_batch(), objective=objective).x_data)
    torch.testing.assert_close(*sampled, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("method", "order"), METHODS)
def test_samples_do_not_depend_on_the_batch(method, order) -> None:
    sampler, x_noise = MultistepSampler(method, order), noise_batch(8)
    together = sampler.sample(sine_network, x_noise, objective=Objective()).x_data
    halves = [sampler.sample(sine_network, half, objective=Objective()).x_data for half in x_noise.split(4)]
    torch.testing.assert_close(together, torch.cat(halves), atol=1e-12, rtol=0)


def test_state_stays_float32_when_the_network_returns_bfloat16() -> None:
    seen = set()

    def network(x_t, t):
        seen.add((x_t.dtype, t.dtype))
        return x_t.bfloat16()

    result = MultistepSampler().sample(network, noise_batch(dtype=torch.bfloat16), objective=Objective())
    assert result.x_data.dtype == torch.float32
    assert seen == {(torch.float32, torch.float32)}


def test_lambda_spacing(gaussian) -> None:
    network = gaussian()
    MultistepSampler(num_steps=5, spacing="lambda", lambda_range=(-2.0, 2.0)).sample(
        network, noise_batch(1), objective=Objective()
    )
    times = torch.cat(network.times)
    assert times[0] == 1
    assert torch.log((1 - times[1:]) / times[1:]).tolist() == pytest.approx([-1.0, 0.0, 1.0, 2.0])


def test_options_are_exported_and_read_again() -> None:
    sampler = MultistepSampler("dpmsolver++", 2, spacing="lambda", lambda_range=(-4.0, 2.5))
    description = described(sampler)
    assert description["class_path"] == "zigma_pl.samplers.MultistepSampler"
    assert description["init_args"]["lambda_range"] == [-4.0, 2.5]
    built = build_described(description, Sampler)
    assert described(built) == description
    assert built.lambda_range == (-4.0, 2.5)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("method", "plms"),
        ("order", 0),
        ("order", 4),
        ("num_steps", 0),
        ("spacing", "sigma"),
        ("time_shift", 0.0),
        ("lambda_range", (1.0, 1.0)),
        ("lambda_range", (-math.inf, 1.0)),
        ("lambda_range", (0.0, math.nan)),
    ],
)
def test_bad_options_are_named(option, value) -> None:
    with pytest.raises(UserError, match=rf"MultistepSampler\.{option}"):
        MultistepSampler(**{option: value})


def test_a_start_above_the_lambda_range_is_named(gaussian) -> None:
    sampler = MultistepSampler(spacing="lambda", lambda_range=(-1.0, 1.0))
    with pytest.raises(UserError, match="lambda_range"):
        sampler.solve(gaussian(), noise_batch(), objective=Objective(), t_start=0.1)
