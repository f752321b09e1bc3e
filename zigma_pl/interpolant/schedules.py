"""Schedules of the interpolant x_t = alpha_t x_data + sigma_t x_noise; t = 0 is data, t = 1 is noise.

Stochastic interpolants, arXiv:2303.08797; the three paths are those of SiT, arXiv:2401.08740, whose released code
reverses time.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from zigma_pl.core.errors import UserError

ScheduleName = Literal["linear", "gvp", "vp"]


class PathCoefficients(NamedTuple):
    """Coefficients of the path at times t, each in the shape and dtype of t.

    alpha, sigma: factors of data and noise.
    d_alpha, d_sigma: their derivatives with respect to t.
    """

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor

    @property
    def determinant(self) -> Tensor:
        """alpha sigma' - sigma alpha' > 0, the determinant of the map (data, noise) -> (x_t, velocity)."""
        return self.alpha * self.d_sigma - self.sigma * self.d_alpha


class Schedule(ABC):
    """A path between data and noise.

    reaches_pure_noise: whether alpha is exactly 0 at t = 1, so that x_1 and the noise do not determine the velocity.
    sigma_rate_diverges: whether d_sigma, and with it the velocity, is infinite at t = 0.
    """

    reaches_pure_noise: bool
    sigma_rate_diverges: bool

    @abstractmethod
    def coefficients(self, t: Tensor) -> PathCoefficients:
        """Return alpha, sigma and their derivatives at times `t` in [0, 1] of any shape, float32 or float64."""

    @abstractmethod
    def time_of_noise_fraction(self, fraction: Tensor) -> Tensor:
        """Return the times at which sigma / (alpha + sigma) is `fraction`, in [0, 1], in its shape and dtype.

        `fraction` is the time at which the linear path has the same signal-to-noise ratio. For fractions that the path
        does not reach, times above 1 are returned.
        """

    def weights(self, t: float) -> tuple[float, float]:
        """Return alpha and sigma at one time, computed in float64."""
        path = self.coefficients(torch.tensor(t, dtype=torch.float64))
        return path.alpha.item(), path.sigma.item()


class LinearSchedule(Schedule):
    """alpha = 1 - t, sigma = t (rectified flow, used by ZigMa). All coefficients are finite at both ends."""

    reaches_pure_noise = True
    sigma_rate_diverges = False

    def coefficients(self, t: Tensor) -> PathCoefficients:
        """See `Schedule.coefficients`."""
        return PathCoefficients(1 - t, t, torch.full_like(t, -1.0), torch.ones_like(t))

    def time_of_noise_fraction(self, fraction: Tensor) -> Tensor:
        """See `Schedule.time_of_noise_fraction`."""
        return fraction


class GVPSchedule(Schedule):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2), alpha^2 + sigma^2 = 1. All coefficients are finite at both ends."""

    reaches_pure_noise = True
    sigma_rate_diverges = False

    def coefficients(self, t: Tensor) -> PathCoefficients:
        """See `Schedule.coefficients`."""
        half_pi = math.pi / 2
        # As a sine of 1 - t, alpha is exactly 0 at t = 1, unlike cos(pi / 2) in floating point.
        alpha, sigma = torch.sin(half_pi * (1 - t)), torch.sin(half_pi * t)
        return PathCoefficients(alpha, sigma, -half_pi * sigma, half_pi * alpha)

    def time_of_noise_fraction(self, fraction: Tensor) -> Tensor:
        """See `Schedule.time_of_noise_fraction`."""
        return torch.atan2(fraction, 1 - fraction) * (2 / math.pi)


class VPSchedule(Schedule):
    """Variance-preserving diffusion, beta(t) = beta_min + t (beta_max - beta_min) (ScoreSDE, arXiv:2011.13456).

    alpha = exp(-int_0^t beta / 2), sigma = sqrt(1 - alpha^2). At t = 0, d_sigma is infinite (sigma grows as the square
    root of t). At t = 1, all coefficients are finite and alpha is about 0.0066, so x_1 still contains some data.

    Args:
        beta_min: noise rate at t = 0, > 0.
        beta_max: noise rate at t = 1, > beta_min.
    """

    reaches_pure_noise = False
    sigma_rate_diverges = True

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        if not 0 < beta_min < beta_max:
            raise UserError(f"VPSchedule: expected 0 < beta_min < beta_max, got {beta_min} and {beta_max}")
        self.beta_min = beta_min
        self.beta_max = beta_max

    def coefficients(self, t: Tensor) -> PathCoefficients:
        """See `Schedule.coefficients`."""
        beta_slope = self.beta_max - self.beta_min
        beta = self.beta_min + t * beta_slope
        log_alpha = -t * (self.beta_min / 2 + t * (beta_slope / 4))
        alpha = torch.exp(log_alpha)
        sigma = torch.sqrt(-torch.expm1(2 * log_alpha))  # expm1 keeps precision for alpha close to 1
        return PathCoefficients(alpha, sigma, -alpha * beta / 2, alpha * alpha * beta / (2 * sigma))

    def time_of_noise_fraction(self, fraction: Tensor) -> Tensor:
        """See `Schedule.time_of_noise_fraction`; infinite for pure noise."""
        # (1 - f)^2 / f^2 = alpha^2 / (1 - alpha^2), so alpha^-2 = 1 + f^2 / (1 - f)^2. The time is the positive root of
        # beta_slope t^2 / 4 + beta_min t / 2 = -log alpha, written without a difference of almost equal numbers.
        minus_log_alpha = torch.log1p((fraction / (1 - fraction)) ** 2) / 2
        half_min = self.beta_min / 2
        root = torch.sqrt(half_min**2 + (self.beta_max - self.beta_min) * minus_log_alpha)
        return 2 * minus_log_alpha / (half_min + root)


_SCHEDULES: dict[str, type[Schedule]] = {"linear": LinearSchedule, "gvp": GVPSchedule, "vp": VPSchedule}


def make_schedule(name: ScheduleName) -> Schedule:
    """Return the schedule with a name, with its published constants.

    Raises: UserError for an unknown name.
    """
    if name not in _SCHEDULES:
        raise UserError(f"schedule: unknown {name!r}: choose one of {', '.join(_SCHEDULES)}")
    return _SCHEDULES[name]()
