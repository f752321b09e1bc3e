import math

import pytest
import torch
from torch.autograd.functional import jacobian

from zigma_pl.core.errors import UserError
from zigma_pl.interpolant import VPSchedule, make_schedule

SCHEDULES = ["linear", "gvp", "vp"]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_derivatives_match_autograd(schedule) -> None:
    path = make_schedule(schedule)
    t = torch.linspace(0.01, 1.0, 23, dtype=torch.float64)
    c = path.coefficients(t)
    for value, derivative in (("alpha", c.d_alpha), ("sigma", c.d_sigma)):
        slopes = jacobian(lambda t, value=value: getattr(path.coefficients(t), value), t).diagonal()
        torch.testing.assert_close(derivative, slopes, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_derivatives_match_finite_differences(schedule) -> None:
    path = make_schedule(schedule)
    t, step = torch.linspace(0.05, 0.95, 19, dtype=torch.float64), 1e-6
    low, here, high = path.coefficients(t - step), path.coefficients(t), path.coefficients(t + step)
    torch.testing.assert_close(here.d_alpha, (high.alpha - low.alpha) / (2 * step), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(here.d_sigma, (high.sigma - low.sigma) / (2 * step), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends(schedule, dtype) -> None:
    path = make_schedule(schedule)
    c = path.coefficients(torch.tensor([0.0, 1.0], dtype=dtype))
    assert all(value.dtype == dtype for value in c)
    assert (c.alpha[0], c.sigma[0]) == (1, 0), "t = 0 is data, exactly"
    assert bool(torch.isinf(c.d_sigma[0])) == path.sigma_rate_diverges
    assert torch.isfinite(torch.stack([*c])[:, 1]).all()
    assert bool(c.alpha[1] == 0) == path.reaches_pure_noise
    assert c.sigma[1].item() == pytest.approx(1, abs=1e-4)
    assert c.alpha[1].item() == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("schedule", ["gvp", "vp"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-7), (torch.float64, 1e-15)])
def test_variance_is_preserved(schedule, dtype, tolerance) -> None:
    c = make_schedule(schedule).coefficients(torch.linspace(0, 1, 101, dtype=dtype))
    torch.testing.assert_close(c.alpha**2 + c.sigma**2, torch.ones(101, dtype=dtype), atol=tolerance, rtol=0)


def test_values_from_the_formulas() -> None:
    t = torch.tensor([0.25], dtype=torch.float64)
    linear, gvp, vp = (make_schedule(schedule).coefficients(t) for schedule in SCHEDULES)
    assert [value.item() for value in linear] == [0.75, 0.25, -1, 1]
    assert (gvp.alpha.item(), gvp.sigma.item()) == pytest.approx((math.cos(math.pi / 8), math.sin(math.pi / 8)))
    integral_of_beta = 0.1 * 0.25 + 19.9 * 0.25**2 / 2
    assert vp.alpha.item() == pytest.approx(math.exp(-integral_of_beta / 2))
    assert vp.sigma.item() == pytest.approx(math.sqrt(1 - math.exp(-integral_of_beta)))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_signal_falls_and_noise_grows(schedule) -> None:
    c = make_schedule(schedule).coefficients(torch.linspace(0, 1, 101))
    assert (c.alpha.diff() < 0).all()
    assert (c.sigma.diff() > 0).all()
    assert (c.determinant[1:] > 0).all()


def test_vp_keeps_its_digits_in_float32_near_data() -> None:
    t = torch.logspace(-6, -2, 9, dtype=torch.float64)
    exact, rounded = VPSchedule().coefficients(t), VPSchedule().coefficients(t.float())
    torch.testing.assert_close(rounded.sigma.double(), exact.sigma, rtol=1e-6, atol=0)
    torch.testing.assert_close(rounded.d_sigma.double(), exact.d_sigma, rtol=1e-6, atol=0)


def test_errors_name_the_option() -> None:
    with pytest.raises(UserError, match=r"schedule: .*'cosine'"):
        make_schedule("cosine")
    with pytest.raises(UserError, match="beta_min"):
        VPSchedule(beta_min=2.0, beta_max=1.0)
