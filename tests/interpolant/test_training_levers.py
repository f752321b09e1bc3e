"""Times and weights of the objective as they reach the training loss of a model, in closed form."""

import pytest
import torch

from zigma_pl.backbones import ZigMa
from zigma_pl.core.randomness import rand_per_sample, randn_per_sample, sample_generators
from zigma_pl.data import Batch
from zigma_pl.interpolant import Objective
from zigma_pl.mixers import Mamba
from zigma_pl.training.module import GenerativeModule

IDS = torch.arange(16)


def trained(**options):
    """Return the loss of a batch, its data, and what the network got and returned."""
    torch.manual_seed(0)
    backbone = ZigMa(1, 4, 4, patch_size=2, width=8, depth=1, mixers=Mamba(state_size=2))
    torch.nn.init.normal_(backbone.final_layer.projection.weight, std=0.5)
    module, calls = GenerativeModule(backbone, Objective(**options)), []
    backbone.register_forward_hook(lambda module, given, output: calls.append((*given[:2], output)))
    latents = torch.randn(len(IDS), 1, 4, 4)
    loss = module.training_loss(Batch(latents, IDS))
    (call,) = calls
    return loss, latents, *call


def error_of(output, target):
    return (output - target).square().mean((1, 2, 3))


@pytest.mark.parametrize("time_shift", [1.0, 3.0])
@pytest.mark.parametrize("time_sampling", ["uniform", "logit_normal"])
def test_training_times_are_sampled_and_shifted_once(time_sampling, time_shift):
    options = {"time_sampling": time_sampling, "logit_mean": -0.4, "logit_std": 0.7}
    _, _, _, t, _ = trained(**options, time_shift=time_shift)
    generators = sample_generators(0, "train", IDS)
    if time_sampling == "uniform":
        expected = rand_per_sample(generators)
    else:
        expected = 1 / (1 + torch.exp(0.4 - 0.7 * randn_per_sample(generators, ())))
    torch.testing.assert_close(t, time_shift * expected / (1 + (time_shift - 1) * expected), rtol=1e-5, atol=1e-6)


def test_the_plain_loss_is_the_error_of_the_velocity():
    loss, x_data, x_t, t, output = trained()
    x_noise = (x_t - (1 - t).reshape(-1, 1, 1, 1) * x_data) / t.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(loss, error_of(output, x_noise - x_data).mean(), rtol=1e-4, atol=0)


def test_data_prediction_is_trained_on_the_error_of_the_velocity():
    """On the linear path, (x_t - D) / t is the velocity of an estimate D of the data."""
    loss, x_data, _, t, output = trained(prediction="data", weighting="velocity", time_margin=0.05)
    torch.testing.assert_close(loss, (error_of(output, x_data) / t**2).mean())


@pytest.mark.parametrize("snr_gamma", [5.0, 1.0])
def test_min_snr_limits_the_weight_of_the_data_error(snr_gamma):
    loss, x_data, x_t, t, velocity = trained(weighting="min_snr", snr_gamma=snr_gamma)
    data = x_t - t.reshape(-1, 1, 1, 1) * velocity
    weight = torch.minimum(((1 - t) / t) ** 2, torch.tensor(snr_gamma))
    torch.testing.assert_close(loss, (weight * error_of(data, x_data)).mean(), rtol=1e-4, atol=0)
