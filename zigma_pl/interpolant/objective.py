"""What the network predicts, at which times, and how its error is weighted (SiT, arXiv:2401.08740, Sec. 2)."""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from zigma_pl.core.class_paths import Configurable
from zigma_pl.core.errors import UserError
from zigma_pl.core.randomness import rand_per_sample, randn_per_sample
from zigma_pl.core.ranges import check_numbers
from zigma_pl.core.transfer import to_device
from zigma_pl.interpolant.conversions import Quantity, coefficients_like, convert, interpolate
from zigma_pl.interpolant.schedules import ScheduleName, make_schedule

Network = Callable[[Tensor, Tensor], Tensor]
"""network(x_t (B, ...), t (B,)) -> raw output in the shape of x_t."""

Prediction = Literal["velocity", "score", "noise", "data"]
Weighting = Literal["uniform", "velocity", "noise", "likelihood", "min_snr"]
TimeSampling = Literal["uniform", "logit_normal"]

# 2^64 divided by the golden ratio, as a signed 64-bit number: multiples of it, modulo 2^64, are evenly spread.
_GOLDEN_STEP = 0x9E3779B97F4A7C15 - 2**64


class Evaluation(NamedTuple):
    """One call of the network in training.

    x_t: (B, ...) the point on the path.
    output: (B, ...) the network's raw output, in its own dtype.
    target: (B, ...) what the output is compared with.
    loss: (B,) the weighted mean squared error of each sample.
    """

    x_t: Tensor
    output: Tensor
    target: Tensor
    loss: Tensor


class _WeightPowers(NamedTuple):
    """Exponents of the weight determinant^a alpha^b sigma^c."""

    determinant: int
    alpha: int
    sigma: int


# The weight of a squared error of the noise in each loss. A noise error e is a velocity error (determinant / alpha) e,
# a score error -e / sigma and a data error -(sigma / alpha) e; likelihood weights the score's by g^2 / 2, where
# g^2 = 2 sigma determinant / alpha. Kept as exponents, so that the ratio of two is infinite only where it truly is.
_NOISE_ERROR_WEIGHTS = {
    "velocity": _WeightPowers(2, -2, 0),
    "noise": _WeightPowers(0, 0, 0),
    "score": _WeightPowers(0, 0, -2),
    "data": _WeightPowers(0, -2, 2),
    "likelihood": _WeightPowers(1, -1, -1),
    "min_snr": _WeightPowers(0, 0, 0),  # where alpha^2 / sigma^2 is below gamma; see `loss_weight`
}


class Objective(Configurable):
    """The training objective of an interpolant model, and the meaning of its network's raw output.

    Args:
        schedule: path from data (t = 0) to noise (t = 1): "linear", "gvp" (cosine and sine) or "vp" (diffusion).
        prediction: what the raw output of the network is.
        weighting: "uniform" is the plain squared error of the prediction; "velocity" and "noise" weight it so that the
            loss equals that of a velocity or noise model; "likelihood" is half the squared diffusion coefficient times
            the score error, which bounds the likelihood (ScoreSDE, arXiv:2011.13456; arXiv:2101.09258); "min_snr" is
            the error of the data times min(SNR, snr_gamma), SNR = alpha^2 / sigma^2 (arXiv:2303.09556).
        time_sampling: law of the training times; "logit_normal" is the sigmoid of a normal (arXiv:2403.03206).
        logit_mean: mean of that normal; positive leans to noise.
        logit_std: its standard deviation, > 0.
        time_shift: moves the training times, of either law, to shift t / (1 + (shift - 1) t): above 1 towards noise, as
            suits pictures of many pixels (arXiv:2403.03206); > 0.
        snr_gamma: limit of the weight "min_snr", > 0.
        time_margin: distance kept, in training and in sampling, from an end of [0, 1] at which the target, its weight
            or its conversion to a velocity is infinite; in (0, 0.5). Other ends keep no distance; see `time_range`.
            With prediction "data" and weighting "velocity" the weight at the margin m is 1 / m^2 on the linear path.

    Raises: UserError for an unknown option or a number out of range.
    """

    def __init__(
        self,
        schedule: ScheduleName = "linear",
        prediction: Prediction = "velocity",
        weighting: Weighting = "uniform",
        time_sampling: TimeSampling = "uniform",
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
        time_margin: float = 1e-3,
        time_shift: float = 1.0,
        snr_gamma: float = 5.0,
    ) -> None:
        self.path = make_schedule(schedule)
        _check_choice("prediction", prediction, get_args(Prediction))
        _check_choice("weighting", weighting, get_args(Weighting))
        _check_choice("time_sampling", time_sampling, get_args(TimeSampling))
        check_numbers("objective", logit_mean=logit_mean)
        check_numbers("objective", above=0, logit_std=logit_std, time_shift=time_shift, snr_gamma=snr_gamma)
        check_numbers("objective", above=0, below=0.5, time_margin=time_margin)
        self.schedule: ScheduleName = schedule
        self.prediction: Prediction = prediction
        self.weighting: Weighting = weighting
        self.time_sampling: TimeSampling = time_sampling
        self.logit_mean = logit_mean
        self.logit_std = logit_std
        self.time_margin = time_margin
        self.time_shift = time_shift
        self.snr_gamma = snr_gamma

    @property
    def time_range(self) -> tuple[float, float]:
        """Lowest and highest time at which the network is trained and evaluated.

        0 and 1, less the margin at t = 0 for a score or data, for anything on the VP path and for a weight that grows
        as 1 / sigma; and at t = 1 for a score or noise (their velocity needs 1 / alpha) and for a weight that grows as
        1 / alpha, unless the path is VP, where alpha stays positive.
        """
        powers = self._weight_powers()
        at_data = self.prediction in ("score", "data") or self.path.sigma_rate_diverges or powers.sigma < 0
        at_noise = self.path.reaches_pure_noise and (self.prediction in ("score", "noise") or powers.alpha < 0)
        return (self.time_margin if at_data else 0.0, 1.0 - self.time_margin if at_noise else 1.0)

    def sample_time(self, generators: list[torch.Generator], *, device: torch.device | str = "cpu") -> Tensor:
        """Draw (B,) float32 training times in (0, 1) and in `time_range`, element i from generator i alone."""
        if self.time_sampling == "uniform":
            fraction = rand_per_sample(generators)
        else:
            fraction = torch.sigmoid(self.logit_mean + self.logit_std * randn_per_sample(generators, ()))
        if self.time_shift != 1:
            fraction = self.time_shift * fraction / (1 + (self.time_shift - 1) * fraction)
        return to_device(self._stretch(fraction), device)

    def validation_times(self, sample_ids: Tensor) -> Tensor:
        """Return (B,) float32 times for sample ids, (B,) int64: a function of each id alone, even over `time_range`.

        Time i is the fractional part of 1/2 + i / golden ratio, so consecutive ids cover the range evenly whatever
        `time_sampling` is, and validation losses of different runs compare.
        """
        # Exact in wrapping integers, whatever the size of the id; the signed result / 2^64 is the fraction less 1/2.
        multiple = sample_ids.to("cpu", torch.int64) * _GOLDEN_STEP
        return self._stretch(multiple.double() / 2.0**64 + 0.5).to(sample_ids.device)

    def training_loss(self, network: Network, x_data: Tensor, x_noise: Tensor, t: Tensor) -> Tensor:
        """Return the (B,) weighted mean squared error of each sample; see `evaluate`."""
        return self.evaluate(network, x_data, x_noise, t).loss

    def evaluate(self, network: Network, x_data: Tensor, x_noise: Tensor, t: Tensor) -> Evaluation:
        """Call the network at x_t and compare its output with the target, in float32 (float64 for float64 data).

        Args:
            network: network(x_t, t) -> raw output in the shape of x_t.
            x_data: (B, ...) clean latents.
            x_noise: (B, ...) standard normal noise.
            t: (B,) times in `time_range`.

        Raises: UserError when a shape, the output's included, does not fit.
        """
        dtype = torch.promote_types(x_data.dtype, torch.float32)
        x_data, x_noise = x_data.to(dtype), x_noise.to(dtype)
        x_t = interpolate(x_data, x_noise, t, self.path)
        target = self._target(x_data, x_noise, t)
        output = network(x_t, t)
        if output.shape != x_t.shape:
            raise UserError(f"network: output shape {tuple(output.shape)} differs from x_t's {tuple(x_t.shape)}")
        squared_error = (output.to(dtype) - target).square().flatten(1).mean(1)
        return Evaluation(x_t, output, target, self.loss_weight(t).to(dtype) * squared_error)

    def loss_weight(self, t: Tensor) -> Tensor:
        """Return the weight, shape and dtype of `t`, that a squared error of the raw prediction carries at time t."""
        powers = self._weight_powers()
        path = self.path.coefficients(t)
        weight = torch.ones_like(t)
        for base, power in zip((path.determinant, path.alpha, path.sigma), powers, strict=True):
            weight = weight * base**power if power else weight
        if self.weighting == "min_snr":  # min(SNR, gamma) times the data's error, which is the noise's / SNR
            weight = weight * (self.snr_gamma * (path.sigma / path.alpha) ** 2).clamp(max=1)
        return weight

    def velocity(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Convert a raw output (B, ...) at x_t (B, ...), t (B,) to the velocity dx_t/dt, in x_t's dtype."""
        return self._convert(output, x_t, t, "velocity")

    def score(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Convert a raw output to the score, the gradient of log p_t(x_t); infinite at t = 0."""
        return self._convert(output, x_t, t, "score")

    def noise(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Convert a raw output to the expected noise given x_t."""
        return self._convert(output, x_t, t, "noise")

    def data(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Convert a raw output to the expected data given x_t (Tweedie's formula)."""
        return self._convert(output, x_t, t, "data")

    def _convert(self, output: Tensor, x_t: Tensor, t: Tensor, target: Quantity) -> Tensor:
        return convert(output, x_t, t, self.path, source=self.prediction, target=target)

    def _target(self, x_data: Tensor, x_noise: Tensor, t: Tensor) -> Tensor:
        path = coefficients_like(x_data, t, self.path)
        if self.prediction == "velocity":
            return path.d_alpha * x_data + path.d_sigma * x_noise
        if self.prediction == "data":
            return x_data
        return x_noise if self.prediction == "noise" else -x_noise / path.sigma

    def _weight_powers(self) -> _WeightPowers:
        if self.weighting == "uniform":
            return _WeightPowers(0, 0, 0)
        wanted, own = _NOISE_ERROR_WEIGHTS[self.weighting], _NOISE_ERROR_WEIGHTS[self.prediction]
        return _WeightPowers(*(a - b for a, b in zip(wanted, own, strict=True)))

    def _stretch(self, fraction: Tensor) -> Tensor:
        """Map [0, 1] to `time_range`, in float32, off the exact ends 0 and 1."""
        low, high = self.time_range
        half_ulp = torch.finfo(torch.float32).eps / 2
        return (low + (high - low) * fraction.double()).float().clamp(half_ulp, 1 - half_ulp)


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"objective.{option}: {value!r} is unknown; choose one of {', '.join(choices)}")
