"""Samplers apply the shift of the training times, once."""

import pytest
import torch

from zigma_pl.core.errors import UserError
from zigma_pl.core.randomness import sample_generators
from zigma_pl.data import Digits
from zigma_pl.evaluation.sampling import describe_sampling
from zigma_pl.interpolant import Objective, resolution_shift
from zigma_pl.interpolant.objective import shift_time
from zigma_pl.samplers import MultistepSampler, ODESampler, SDESampler
from zigma_pl.training.module import GenerativeModule

X_NOISE = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
SAMPLERS = [
    lambda **options: ODESampler("euler", 4, **options),
    lambda **options: MultistepSampler("unipc", 2, 4, **options),
    lambda **options: SDESampler("euler_maruyama", 5, last_step_size=1e-9, **options),  # four steps, and the last one
]
EVEN, SHIFTED = [1.0, 0.75, 0.5, 0.25], [1.0, 0.9, 0.75, 0.5]  # 3 t / (1 + 2 t)


def run(gaussian, sampler, objective):
    network = gaussian(objective)
    generators = sample_generators(0, "sample", range(4))
    result = sampler.sample(network, X_NOISE, objective=objective, generators=generators)
    return [times[0].item() for times in network.times][:4], result.x_data


@pytest.mark.parametrize("build", SAMPLERS)
def test_the_shift_is_that_of_training_unless_the_sampler_has_its_own(gaussian, build) -> None:
    shifted = Objective(time_shift=3.0)
    assert run(gaussian, build(), Objective())[0] == pytest.approx(EVEN)
    assert run(gaussian, build(), shifted)[0] == pytest.approx(SHIFTED)
    assert run(gaussian, build(time_shift=1.0), shifted)[0] == pytest.approx(EVEN)
    assert run(gaussian, build(time_shift=3.0), Objective(time_shift=7.0))[0] == pytest.approx(SHIFTED)


@pytest.mark.parametrize("build", SAMPLERS)
def test_without_a_shift_samples_keep_their_bits(gaussian, build) -> None:
    times, samples = run(gaussian, build(), Objective())
    assert run(gaussian, build(time_shift=1.0), Objective())[0] == times
    assert torch.equal(run(gaussian, build(time_shift=1.0), Objective())[1], samples)


@pytest.mark.parametrize("sampler", [ODESampler("dopri5"), MultistepSampler(spacing="lambda")])
def test_samplers_with_other_times_use_no_shift(gaussian, sampler) -> None:
    plain, shifted = (run(gaussian, sampler, Objective(time_shift=shift)) for shift in (1.0, 3.0))
    assert plain[0] == shifted[0]
    assert torch.equal(plain[1], shifted[1])


def test_encoding_uses_the_times_of_sampling(gaussian) -> None:
    network = gaussian(Objective(time_shift=3.0))
    ODESampler("euler", 4).encode(network, X_NOISE, objective=Objective(time_shift=3.0))
    assert [times[0].item() for times in network.times] == pytest.approx([0.0, *SHIFTED[:0:-1]])


def test_training_and_sampling_shift_the_same_times_in_the_same_way(gaussian) -> None:
    """Also with a margin, which the shift leaves where it is."""
    options = {"prediction": "data", "time_margin": 0.2}
    low = 0.2
    ids = range(50)
    t = Objective(**options).sample_time(sample_generators(0, "train", ids)).double()
    of_training = Objective(time_shift=3.0, **options).sample_time(sample_generators(0, "train", ids)).double()
    expected = low + (1 - low) * shift_time((t - low) / (1 - low), 3.0)
    torch.testing.assert_close(of_training, expected, rtol=1e-5, atol=1e-6)
    network = gaussian(Objective(time_shift=3.0, **options))
    ODESampler("euler", 5).sample(network, X_NOISE, objective=network.objective)
    of_sampling = [low + (1 - low) * shifted for shifted in (*SHIFTED, 0.0)]
    assert [times[0].item() for times in network.times] == pytest.approx(of_sampling)


def test_the_record_has_the_shift_that_was_used() -> None:
    from evaluation.tiny_run import build

    def described(sampler, objective):
        module: GenerativeModule = build()
        module.sampler, module.objective = sampler, objective
        return describe_sampling(module, Digits(), "test", "32-true")["sampler"]

    assert described(ODESampler(), Objective()) == described(ODESampler(time_shift=1.0), Objective())
    assert described(ODESampler(), Objective(time_shift=3.0))["time_shift"] == 3.0
    assert described(ODESampler(time_shift=2.0), Objective(time_shift=3.0))["time_shift"] == 2.0


def test_the_shift_of_a_resolution_keeps_the_uncertainty_of_a_mean() -> None:
    """The mean of n pixels (1 - t) c + t e, divided by 1 - t, has the standard deviation t / (1 - t) / sqrt(n)."""
    assert resolution_shift(1024, 256) == 2.0
    assert resolution_shift(256, 256) == 1.0
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    shifted = shift_time(t, resolution_shift(1000, 256))
    torch.testing.assert_close(shifted / (1 - shifted) / 1000**0.5, t / (1 - t) / 256**0.5)
    with pytest.raises(UserError, match="base_tokens"):
        resolution_shift(256, 0)
