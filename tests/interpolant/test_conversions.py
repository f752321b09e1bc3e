import itertools

import pytest
import torch

from zigma_pl.core.errors import UserError
from zigma_pl.interpolant import convert, interpolate, make_schedule

SCHEDULES = ["linear", "gvp", "vp"]
QUANTITIES = ["velocity", "score", "noise", "data"]
DIRECTIONS = list(itertools.product(QUANTITIES, QUANTITIES))


def known_quantities(schedule, dtype):
    """A point x_t with known data and noise, and all other quantities by definition."""
    generator = torch.Generator().manual_seed(0)
    data, noise = torch.randn(2, 7, 2, 3, 1, generator=generator, dtype=torch.float64).to(dtype)
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64).to(dtype)
    path = make_schedule(schedule)
    x_t = interpolate(data, noise, t, path)
    c = [value.reshape(-1, 1, 1, 1) for value in path.coefficients(t)]
    velocity = c[2] * data + c[3] * noise
    return path, x_t, t, {"velocity": velocity, "score": -noise / c[1], "noise": noise, "data": data}


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_direction_recovers_the_definition(schedule, source, target) -> None:
    path, x_t, t, known = known_quantities(schedule, torch.float64)
    result = convert(known[source], x_t, t, path, source=source, target=target)
    torch.testing.assert_close(result, known[target], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_round_trip_of_an_arbitrary_output(schedule, source, target) -> None:
    path, x_t, t, _ = known_quantities(schedule, torch.float64)
    output = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    there = convert(output, x_t, t, path, source=source, target=target)
    back = convert(there, x_t, t, path, source=target, target=source)
    torch.testing.assert_close(back, output, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gaussian_data_in_closed_form(schedule) -> None:
    mean, std = 0.3, 1.7
    path, x_t, t, _ = known_quantities(schedule, torch.float64)
    c = [value.reshape(-1, 1, 1, 1) for value in path.coefficients(t)]
    total_std = (c[0] ** 2 * std**2 + c[1] ** 2).sqrt()
    score = -(x_t - c[0] * mean) / total_std**2
    # A Gaussian's flow keeps (x_t - mean_t) / std_t, so its velocity needs only the derivatives of mean_t and std_t.
    d_total_std = (c[0] * c[2] * std**2 + c[1] * c[3]) / total_std
    velocity = c[2] * mean + d_total_std / total_std * (x_t - c[0] * mean)
    torch.testing.assert_close(convert(velocity, x_t, t, path, source="velocity", target="score"), score)
    torch.testing.assert_close(convert(score, x_t, t, path, source="score", target="velocity"), velocity)


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
def test_float32_agrees_with_float64(source, target) -> None:
    path, x_t, t, known = known_quantities("vp", torch.float64)
    exact = convert(known[source], x_t, t, path, source=source, target=target)
    rounded = convert(known[source].float(), x_t.float(), t.float(), path, source=source, target=target)
    assert rounded.dtype == torch.float32
    error = (rounded.double() - exact).abs().amax((1, 2, 3)) / exact.abs().amax((1, 2, 3))
    assert error.max() < 2e-4  # noise -> data at t = 0.95 divides by alpha = 0.01


@pytest.mark.parametrize("schedule", ["linear", "gvp"])
@pytest.mark.parametrize("target", ["noise", "data"])
def test_velocity_converts_at_both_ends(schedule, target) -> None:
    path, t = make_schedule(schedule), torch.tensor([0.0, 1.0])
    data, noise = torch.tensor([[2.0], [2.0]]), torch.tensor([[-3.0], [-3.0]])
    c = [value.reshape(-1, 1) for value in path.coefficients(t)]
    x_t, velocity = interpolate(data, noise, t, path), c[2] * data + c[3] * noise
    expected = noise if target == "noise" else data
    torch.testing.assert_close(convert(velocity, x_t, t, path, source="velocity", target=target), expected)


def test_bfloat16_outputs_become_the_dtype_of_the_state() -> None:
    path, x_t, t, known = known_quantities("linear", torch.float32)
    for target in QUANTITIES:
        result = convert(known["velocity"].bfloat16(), x_t, t, path, source="velocity", target=target)
        assert result.dtype == torch.float32


def test_a_scalar_time_serves_the_whole_batch() -> None:
    path, x_t, _, known = known_quantities("gvp", torch.float64)
    t = torch.tensor(0.4, dtype=torch.float64)
    one = convert(known["noise"], x_t, t, path, source="noise", target="data")
    torch.testing.assert_close(one, convert(known["noise"], x_t, t.expand(7), path, source="noise", target="data"))


def test_mismatched_shapes_are_named() -> None:
    path, x_t, t, _ = known_quantities("linear", torch.float32)
    with pytest.raises(UserError, match="velocity: shape"):
        convert(x_t[:, :1], x_t, t, path, source="velocity", target="data")
    with pytest.raises(UserError, match="one time per sample"):
        convert(x_t, x_t, t[:3], path, source="velocity", target="data")
    with pytest.raises(UserError, match="x_noise"):
        interpolate(x_t, x_t[:, :1], t, path)
