"""Schedules of the interpolant x_t = alpha_t x_data + sigma_t x_noise, with t = 0 data and t = 1 noise.

Stochastic interpolants, arXiv:2303.08797; the same three paths as in SiT, arXiv:2401.08740, whose released code lets
time run the other way.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from zigma_pl.core.errors import UserError

ScheduleName = Literal["linear", "gvp", "vp"]


class PathCoefficients(NamedTuple):
    """Coefficients of the path at some times, each in the shape and dtype of t.

    alpha, sigma: weights of data and noise. d_alpha, d_sigma: their derivatives with respect to t.
    """

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor

    @property
    def determinant(self) -> Tensor:
        """alpha sigma' - sigma alpha', positive: the determinant of (data, noise) -> (x_t, velocity)."""
        return self.alpha * self.d_sigma - self.sigma * self.d_alpha


class Schedule(ABC):
    """A path between data and noise.

    reaches_pure_noise: alpha is exactly 0 at t = 1, so x_1 and the noise together do not determine the velocity there.
    sigma_rate_diverges: d_sigma is infinite at t = 0, and with it the velocity.
    """

    reaches_pure_noise: bool
    sigma_rate_diverges: bool

    @abstractmethod
    def coefficients(self, t: Tensor) -> PathCoefficients:
        """Return alpha, sigma and their derivatives at times `t` in [0, 1], any shape, float32 or float64."""


class LinearSchedule(Schedule):
    """alpha = 1 - t, sigma = t (rectified flow, ZigMa's path). Everything is finite at both ends."""

    reaches_pure_noise = True
    sigma_rate_diverges = False

    def coefficients(self, t: Tensor) -> PathCoefficients:
        """See `Schedule.coefficients`."""
        return PathCoefficients(1 - t, t, torch.full_like(t, -1.0), torch.ones_like(t))


class GVPSchedule(Schedule):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2), so alpha^2 + sigma^2 = 1. Everything is finite at both ends."""

    reaches_pure_noise = True
    sigma_rate_diverges = False

    def coefficients(self, t: Tensor) -> PathCoefficients:
        """See `Schedule.coefficients`."""
        half_pi = math.pi / 2
        # As a sine of 1 - t, alpha is exactly 0 at t = 1, where cos(pi / 2) is a small number of either sign.
        alpha, sigma = torch.sin(half_pi * (1 - t)), torch.sin(half_pi * t)
        return PathCoefficients(alpha, sigma, -half_pi * sigma, half_pi * alpha)


class VPSchedule(Schedule):
    """Variance-preserving diffusion, beta(t) = beta_min + t (beta_max - beta_min) (ScoreSDE, arXiv:2011.13456).

    alpha = exp(-int_0^t beta / 2), sigma = sqrt(1 - alpha^2). At t = 0 d_sigma is infinite (sigma grows as the square
    root of t); at t = 1 everything is finite and alpha is about 0.0066, so a little of the data is left.

    Args:
        beta_min: noise rate at t = 0, > 0.
        beta_max: noise rate at t = 1, > beta_min.
    """

    reaches_pure_noise = False
    sigma_rate_diverges = True

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        if not 0 < beta_min < beta_max:
            raise UserError(f"VPSchedule: need 0 < beta_min < beta_max, got beta_min={beta_min}, beta_max={beta_max}")
        self.beta_min = beta_min
        self.beta_max = beta_max

    def coefficients(self, t: Tensor) -> PathCoefficients:
        """See `Schedule.coefficients`."""
        beta_slope = self.beta_max - self.beta_min
        beta = self.beta_min + t * beta_slope
        log_alpha = -t * (self.beta_min / 2 + t * (beta_slope / 4))
        alpha = torch.exp(log_alpha)
        sigma = torch.sqrt(-torch.expm1(2 * log_alpha))  # expm1 keeps sigma's digits where alpha is almost 1
        return PathCoefficients(alpha, sigma, -alpha * beta / 2, alpha * alpha * beta / (2 * sigma))


_SCHEDULES: dict[str, type[Schedule]] = {"linear": LinearSchedule, "gvp": GVPSchedule, "vp": VPSchedule}


def make_schedule(name: ScheduleName) -> Schedule:
    """Return the schedule called `name`, with its published constants.

    Raises: UserError for an unknown name.
    """
    if name not in _SCHEDULES:
        raise UserError(f"schedule: {name!r} is unknown; choose one of {', '.join(_SCHEDULES)}")
    return _SCHEDULES[name]()
