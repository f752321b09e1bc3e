import itertools
import math

import pytest
import torch
from jsonargparse import ArgumentParser

from zigma_pl.core.errors import UserError
from zigma_pl.core.randomness import sample_generators
from zigma_pl.interpolant import Objective, convert

SCHEDULES = ["linear", "gvp", "vp"]
PREDICTIONS = ["velocity", "score", "noise", "data"]
WEIGHTINGS = ["uniform", "velocity", "noise", "likelihood", "min_snr"]


def training_pair(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x_data, x_noise = torch.randn(2, 9, 2, 3, 3, generator=generator, dtype=torch.float64).to(dtype)
    return x_data, x_noise, torch.linspace(0.05, 0.95, 9, dtype=torch.float64).to(dtype)


def imperfect_network(objective):
    """An imperfect model of the data, 0.4 sin(x_t), for every type of prediction."""

    def network(x_t, t):
        belief = 0.4 * torch.sin(x_t)
        return convert(belief, x_t, t, objective.path, source="data", target=objective.prediction)

    return network


@pytest.mark.parametrize(("schedule", "prediction"), list(itertools.product(SCHEDULES, PREDICTIONS)))
def test_the_loss_is_zero_for_the_exact_target_and_not_for_another(schedule, prediction) -> None:
    objective = Objective(schedule, prediction)
    x_data, x_noise, t = training_pair()

    def exact(x_t, t):
        return convert(x_noise, x_t, t, objective.path, source="noise", target=prediction)

    loss = objective.training_loss(exact, x_data, x_noise, t)
    assert loss.shape == (9,)
    assert loss.max() < 1e-15
    assert objective.training_loss(imperfect_network(objective), x_data, x_noise, t).min() > 1e-5


def test_linear_velocity_loss_by_hand() -> None:
    x_data, x_noise, t = training_pair()
    seen = []

    def network(x_t, t):
        seen.append((x_t, t))
        return torch.zeros_like(x_t)

    loss = Objective().training_loss(network, x_data, x_noise, t)
    torch.testing.assert_close(loss, (x_noise - x_data).square().mean((1, 2, 3)))
    weight = t.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(seen[0][0], (1 - weight) * x_data + weight * x_noise)
    assert torch.equal(seen[0][1], t)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("weighting", ["velocity", "noise", "likelihood", "min_snr"])
def test_a_weighted_loss_is_the_same_for_every_prediction(schedule, weighting) -> None:
    losses = []
    for prediction in PREDICTIONS:
        objective = Objective(schedule, prediction, weighting)
        losses.append(objective.training_loss(imperfect_network(objective), *training_pair()))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-8, atol=0)
    torch.testing.assert_close(losses[2], losses[0], rtol=1e-8, atol=0)
    torch.testing.assert_close(losses[3], losses[0], rtol=1e-8, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", ["velocity", "noise"])
def test_weighting_named_after_the_prediction_is_uniform(schedule, prediction) -> None:
    t = torch.linspace(0, 1, 5)
    assert torch.equal(Objective(schedule, prediction, prediction).loss_weight(t), torch.ones(5))
    assert torch.equal(Objective(schedule, prediction, "uniform").loss_weight(t), torch.ones(5))


def test_likelihood_weight_is_half_the_diffusion_times_the_score_error() -> None:
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    beta = 0.1 + 19.9 * t
    torch.testing.assert_close(Objective("vp", "score", "likelihood").loss_weight(t), beta / 2)
    torch.testing.assert_close(Objective("linear", "score", "likelihood").loss_weight(t), t / (1 - t))


def test_min_snr_weight_of_the_data_error_by_hand() -> None:
    t = torch.tensor([0.1, 0.25, 0.5, 0.9], dtype=torch.float64)  # SNR ((1 - t) / t)^2: 81, 9, 1, 1 / 81
    weight = Objective("linear", "data", "min_snr", snr_gamma=5).loss_weight(t)
    torch.testing.assert_close(weight, torch.tensor([5, 5, 1, 1 / 81], dtype=torch.float64))


def test_data_prediction_with_velocity_weights_by_hand() -> None:
    """On the linear path velocity = (x_t - data) / t, so its error is the data's error / t."""
    x_data, x_noise, t = training_pair()
    objective = Objective(prediction="data", weighting="velocity", time_margin=0.01)
    loss = objective.training_loss(lambda x_t, t: torch.zeros_like(x_t), x_data, x_noise, t)
    torch.testing.assert_close(loss, x_data.square().mean((1, 2, 3)) / t**2)


@pytest.mark.parametrize("law", ["uniform", "logit_normal"])
def test_shifted_times_are_the_unshifted_ones_moved(law) -> None:
    ids = range(100)
    t = Objective(time_sampling=law).sample_time(sample_generators(0, "train", ids)).double()
    shifted = Objective(time_sampling=law, time_shift=3.0).sample_time(sample_generators(0, "train", ids)).double()
    torch.testing.assert_close(shifted, 3 * t / (1 + 2 * t), rtol=1e-6, atol=1e-7)
    assert torch.equal(
        Objective(time_shift=3.0).validation_times(torch.arange(9)), Objective().validation_times(torch.arange(9))
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("linear", "velocity"), (0.0, 1.0)),
        (("gvp", "velocity"), (0.0, 1.0)),
        (("vp", "velocity"), (0.01, 1.0)),
        (("linear", "noise"), (0.0, 0.99)),
        (("vp", "noise"), (0.01, 1.0)),
        (("linear", "score"), (0.01, 0.99)),
        (("linear", "velocity", "likelihood"), (0.01, 1.0)),
        (("linear", "velocity", "noise"), (0.0, 1.0)),
        (("linear", "data"), (0.01, 1.0)),
        (("linear", "data", "velocity"), (0.01, 1.0)),
        (("vp", "data"), (0.01, 1.0)),
        (("linear", "velocity", "min_snr"), (0.0, 1.0)),
    ],
)
def test_margins_are_kept_at_singular_ends_only(options, expected) -> None:
    assert Objective(*options, time_margin=0.01).time_range == expected


@pytest.mark.parametrize("options", list(itertools.product(SCHEDULES, PREDICTIONS, WEIGHTINGS)))
def test_loss_and_conversions_are_finite_over_the_whole_time_range(options) -> None:
    objective = Objective(*options)
    x_data, x_noise, _ = training_pair(torch.float32)
    t = torch.tensor(objective.time_range).repeat(5)[:9]
    loss = objective.training_loss(lambda x_t, t: x_t, x_data, x_noise, t)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(objective.velocity(x_data, x_noise, t)).all()
    assert torch.isfinite(objective.data(x_data, x_noise, t)).all()


def test_loss_is_float32_and_differentiable_for_a_bfloat16_network() -> None:
    x_data, x_noise, t = training_pair(torch.float32)
    scale = torch.tensor(0.5, requires_grad=True)
    loss = Objective().training_loss(lambda x_t, t: (scale * x_t).bfloat16(), x_data.bfloat16(), x_noise, t)
    assert loss.dtype == torch.float32
    x_data, weight = x_data.bfloat16().float(), t.reshape(-1, 1, 1, 1)
    output = (0.5 * ((1 - weight) * x_data + weight * x_noise)).bfloat16().float()
    torch.testing.assert_close(loss, (output - (x_noise - x_data)).square().mean((1, 2, 3)))
    loss.mean().backward()
    assert scale.grad is not None
    assert scale.grad.abs() > 0


def test_raw_outputs_convert_by_the_prediction() -> None:
    x_data, x_noise, t = training_pair()
    x_t = (1 - t).reshape(-1, 1, 1, 1) * x_data + t.reshape(-1, 1, 1, 1) * x_noise
    objective = Objective(prediction="noise")
    torch.testing.assert_close(objective.data(x_noise, x_t, t), x_data)
    torch.testing.assert_close(objective.velocity(x_noise, x_t, t), x_noise - x_data)
    torch.testing.assert_close(objective.noise(x_noise, x_t, t), x_noise)
    torch.testing.assert_close(objective.score(x_noise, x_t, t), -x_noise / t.reshape(-1, 1, 1, 1))


def test_uniform_times() -> None:
    t = Objective().sample_time(sample_generators(0, "train", range(4000)))
    assert t.dtype == torch.float32
    assert t.shape == (4000,)
    assert 0 < t.min() < 0.01
    assert 0.99 < t.max() < 1
    assert t.mean().item() == pytest.approx(0.5, abs=0.015)
    assert t.var().item() == pytest.approx(1 / 12, abs=0.005)


@pytest.mark.parametrize(("logit_mean", "logit_std"), [(0.0, 1.0), (-0.8, 0.6)])
def test_logit_normal_times(logit_mean, logit_std) -> None:
    objective = Objective(time_sampling="logit_normal", logit_mean=logit_mean, logit_std=logit_std)
    t = objective.sample_time(sample_generators(0, "train", range(4000))).double()
    logits = torch.logit(t)
    assert logits.mean().item() == pytest.approx(logit_mean, abs=0.05)
    assert logits.std().item() == pytest.approx(logit_std, abs=0.03)
    # The median of t is the sigmoid of the normal's.
    assert t.median().item() == pytest.approx(1 / (1 + math.exp(-logit_mean)), abs=0.02)


def test_extreme_times_stay_inside_the_open_interval() -> None:
    objective = Objective(time_sampling="logit_normal", logit_std=200.0)
    t = objective.sample_time(sample_generators(0, "train", range(200)))
    assert t.min() > 0
    assert t.max() < 1


@pytest.mark.parametrize("time_sampling", ["uniform", "logit_normal"])
def test_each_time_belongs_to_its_sample_and_its_range(time_sampling) -> None:
    objective = Objective("linear", "score", time_sampling=time_sampling, time_margin=0.2)
    t = objective.sample_time(sample_generators(0, "train", range(200)))
    halves = [objective.sample_time(sample_generators(0, "train", ids)) for ids in (range(100), range(100, 200))]
    assert torch.equal(t, torch.cat(halves))
    assert t.min() >= 0.2
    assert t.max() <= 0.8


def test_validation_times_are_even_and_belong_to_the_id() -> None:
    objective = Objective(time_sampling="logit_normal")
    ids = torch.arange(1000)
    t = objective.validation_times(ids)
    assert 0 < t.min() < t.max() < 1
    assert torch.equal(objective.validation_times(ids.flip(0)[:10]), t.flip(0)[:10])
    assert t[0] == 0.5
    # Largest gap between sorted times: of order 1 / n, where random times would have ln(n) / n.
    for first in (0, 300):
        gaps = t[first : first + 100].sort().values.diff()
        assert gaps.max() < 2.2 / 100
    golden = (5**0.5 - 1) / 2
    torch.testing.assert_close(t.double(), (0.5 + ids.double() * golden) % 1, atol=1e-6, rtol=0)


def test_validation_times_are_exact_for_huge_ids_and_keep_the_margin() -> None:
    ids = 2**40 + torch.arange(100)
    gaps = Objective().validation_times(ids).sort().values.diff()
    assert gaps.min() > 0.003
    assert gaps.max() < 2.2 / 100
    t = Objective("linear", "score", time_margin=0.2).validation_times(ids)
    assert t.min() >= 0.2
    assert t.max() <= 0.8


def test_its_options_need_no_class_path() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--objective", type=Objective)
    options = ["--objective.schedule=gvp", "--objective.prediction=score", "--objective.logit_std=2"]
    objective = parser.instantiate(parser.parse_args(options)).objective
    assert type(objective) is Objective
    assert (objective.schedule, objective.prediction, objective.logit_std) == ("gvp", "score", 2.0)
    with pytest.raises(Exception, match="schedule"):
        parser.parse_args(["--objective.schedule=gpv"])


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "cosine"},
        {"prediction": "epsilon"},
        {"weighting": "snr"},
        {"time_sampling": "normal"},
        {"logit_std": 0.0},
        {"time_margin": 0.0},
        {"time_margin": 0.5},
    ],
)
def test_bad_options_are_named(options) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        Objective(**options)


def test_bad_shapes_are_named() -> None:
    x_data, x_noise, t = training_pair()
    with pytest.raises(UserError, match="output shape"):
        Objective().training_loss(lambda x_t, t: x_t[:, :1], x_data, x_noise, t)
    with pytest.raises(UserError, match="x_noise"):
        Objective().training_loss(lambda x_t, t: x_t, x_data, x_noise[:3], t)
    with pytest.raises(UserError, match="one time per sample"):
        Objective().training_loss(lambda x_t, t: x_t, x_data, x_noise, t[:3])
