import itertools

import lightning as L
import pytest
import torch

from zigma_pl.backbones import ZigMa
from zigma_pl.core.randomness import randn_per_sample, sample_generators
from zigma_pl.data import Digits
from zigma_pl.interpolant import Objective, convert, make_schedule, velocity_loss
from zigma_pl.interpolant.velocity_loss import equivalent_times, has_linear_times, linear_times
from zigma_pl.mixers import Mamba
from zigma_pl.training.module import EVALUATION_SEED, GenerativeModule

SCHEDULES = ["linear", "gvp", "vp"]
PREDICTIONS = ["velocity", "score", "noise", "data"]
OBJECTIVES = list(itertools.product(SCHEDULES, PREDICTIONS))
T = torch.linspace(0.05, 0.95, 9, dtype=torch.float64)


def pair():
    x_data, x_noise = torch.randn(2, 9, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x_data, x_noise


def losses_of(objective, estimate, quantity):
    """Return the velocity losses of a network whose `quantity` is estimate(x on the linear path, t)."""
    x_data, x_noise = pair()
    s = objective.path.time_of_noise_fraction(T)

    def network(x_s, s):
        x_t = (1 - T).reshape(-1, 1, 1, 1) * x_data + T.reshape(-1, 1, 1, 1) * x_noise
        return convert(estimate(x_t), x_s, s, objective.path, source=quantity, target=objective.prediction)

    return velocity_loss(objective, objective.evaluate(network, x_data, x_noise, s), s)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_equivalent_times_have_the_signal_to_noise_ratio_of_the_linear_path(schedule):
    path = make_schedule(schedule)
    t = torch.linspace(0.001, 0.99, 50, dtype=torch.float64)
    coefficients = path.coefficients(path.time_of_noise_fraction(t))
    torch.testing.assert_close(coefficients.alpha / coefficients.sigma, (1 - t) / t, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("schedule", "prediction"), OBJECTIVES)
def test_losses_of_perfect_and_of_biased_networks_by_hand(schedule, prediction):
    objective, (x_data, x_noise) = Objective(schedule, prediction), pair()
    assert losses_of(objective, lambda x_t: x_data, "data").max() < 1e-20
    torch.testing.assert_close(losses_of(objective, lambda x_t: x_data + 0.1, "data"), 0.01 / T**2)
    torch.testing.assert_close(losses_of(objective, lambda x_t: x_noise - 0.1, "noise"), 0.01 / (1 - T) ** 2)


@pytest.mark.parametrize(("schedule", "prediction"), OBJECTIVES)
def test_the_same_beliefs_have_the_same_loss_on_every_path_and_in_every_prediction(schedule, prediction):
    """That of the plain velocity model: the velocity of the belief D is (x_t - D) / t."""
    x_data, x_noise = pair()
    t = T.reshape(-1, 1, 1, 1)
    x_t = (1 - t) * x_data + t * x_noise
    expected = ((x_t - 0.4 * torch.sin(x_t)) / t - (x_noise - x_data)).square().mean((1, 2, 3))
    losses = losses_of(Objective(schedule, prediction), lambda x_t: 0.4 * torch.sin(x_t), "data")
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("weighting", ["uniform", "likelihood", "min_snr"])
def test_weighting_and_sampling_of_times_do_not_change_it(weighting):
    objective = Objective(weighting=weighting, time_sampling="logit_normal", time_shift=3.0)
    losses = losses_of(objective, lambda x_t: 0.4 * torch.sin(x_t), "data")
    assert torch.equal(losses, losses_of(Objective(), lambda x_t: 0.4 * torch.sin(x_t), "data"))


@pytest.mark.parametrize(("schedule", "prediction"), OBJECTIVES)
def test_times_are_shared_except_outside_the_range_of_the_objective(schedule, prediction):
    objective, t = Objective(schedule, prediction), linear_times(torch.arange(2000))
    assert torch.equal(t, Objective().validation_times(torch.arange(2000)))
    s = equivalent_times(objective, t)
    low, high = objective.time_range
    assert s.dtype == torch.float32
    assert low <= s.min() < s.max() <= high
    coefficients = objective.path.coefficients(s.double())
    found = (coefficients.sigma / (coefficients.alpha + coefficients.sigma)).float()
    assert ((found - t).abs() > 1e-6).float().mean() < (0.018 if schedule == "vp" else 0.004)
    assert has_linear_times(objective) == torch.equal(s, t)


def small_module(**options):
    torch.manual_seed(0)
    backbone = ZigMa(1, 8, 8, patch_size=4, width=16, depth=1, mixers=Mamba(state_size=4))
    torch.nn.init.normal_(backbone.final_layer.projection.weight, std=0.1)
    return GenerativeModule(backbone, Objective(**options))


def validate(folder, **options):
    trainer = L.Trainer(default_root_dir=folder, accelerator="cpu", logger=False, enable_progress_bar=False)
    module, calls = small_module(**options), []
    module.backbone.register_forward_hook(lambda *_: calls.append(1))
    (metrics,) = trainer.validate(module, datamodule=Digits(batch_size=500), verbose=False)
    return metrics, len(calls)


def test_the_plain_velocity_loss_is_the_validation_loss_without_another_call(tmp_path):
    metrics, num_calls = validate(tmp_path)
    assert metrics["validation/velocity_loss"] == pytest.approx(metrics["validation/loss"], rel=1e-9)
    assert num_calls == 1
    shifted, _ = validate(tmp_path, time_sampling="logit_normal", time_shift=3.0)
    assert shifted["validation/velocity_loss"] == metrics["validation/velocity_loss"]
    weighted, _ = validate(tmp_path, weighting="min_snr")
    assert weighted["validation/velocity_loss"] == metrics["validation/velocity_loss"]
    assert weighted["validation/loss"] != pytest.approx(metrics["validation/loss"], rel=1e-3)


@pytest.mark.parametrize(("schedule", "prediction"), [("linear", "data"), ("vp", "noise")])
def test_the_logged_loss_of_other_objectives_is_at_the_shared_times(schedule, prediction, tmp_path):
    metrics, num_calls = validate(tmp_path, schedule=schedule, prediction=prediction)
    assert num_calls == 2
    module, data = small_module(schedule=schedule, prediction=prediction).eval(), Digits(batch_size=500)
    data.setup("validate")
    (raw,) = data.val_dataloader()
    batch = data.encode(raw, "cpu")
    noise = randn_per_sample(sample_generators(EVALUATION_SEED, "validation", batch.sample_ids), (1, 8, 8))
    objective = module.objective
    s = equivalent_times(objective, linear_times(batch.sample_ids))
    path = objective.path.coefficients(s.reshape(-1, 1, 1, 1))
    x_s = path.alpha * batch.latents + path.sigma * noise
    with torch.no_grad():
        output = module.backbone(x_s, s)
    error = objective.noise(output, x_s, s) - objective.data(output, x_s, s) - (noise - batch.latents)
    assert metrics["validation/velocity_loss"] == pytest.approx(error.square().mean().item(), rel=1e-4)
