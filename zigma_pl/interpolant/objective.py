"""The training objective: prediction target, distribution of times, loss weighting (SiT, arXiv:2401.08740, Sec. 2)."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor

from zigma_pl.core.class_paths import Configurable
from zigma_pl.core.errors import UserError
from zigma_pl.core.randomness import rand_per_sample, randn_per_sample
from zigma_pl.core.ranges import check_numbers, check_whole_numbers
from zigma_pl.core.transfer import to_device
from zigma_pl.interpolant.conversions import Quantity, coefficients_like, convert, interpolate
from zigma_pl.interpolant.schedules import ScheduleName, make_schedule

Network = Callable[[Tensor, Tensor], Tensor]
"""network(x_t (B, ...), t (B,)) -> raw output in the shape of x_t."""

PredictionType = Literal["velocity", "score", "noise", "data"]
Weighting = Literal["uniform", "velocity", "noise", "likelihood", "min_snr"]
TimeSampling = Literal["uniform", "logit_normal"]
Time = TypeVar("Time", float, Tensor)

# 2^64 divided by the golden ratio, as a signed 64-bit number; its multiples modulo 2^64 are evenly distributed.
_GOLDEN_STEP = 0x9E3779B97F4A7C15 - 2**64


class Evaluation(NamedTuple):
    """Result of `Objective.evaluate`: the network's output for a training batch, with its target and loss.

    x_t: (B, ...), the point on the path.
    output: (B, ...), raw output of the network, in the network's dtype.
    target: (B, ...), target of the output.
    loss: (B,), weighted mean squared error of each sample.
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


# Weight of the squared noise error in each loss. A noise error e is a velocity error (determinant / alpha) e, a score
# error -e / sigma and a data error -(sigma / alpha) e; the likelihood weighting multiplies the squared score error by
# g^2 / 2, where g^2 = 2 sigma determinant / alpha. As exponents, so that factors cancel exactly in ratios of weights.
_NOISE_ERROR_WEIGHTS = {
    "velocity": _WeightPowers(2, -2, 0),
    "noise": _WeightPowers(0, 0, 0),
    "score": _WeightPowers(0, 0, -2),
    "data": _WeightPowers(0, -2, 2),
    "likelihood": _WeightPowers(1, -1, -1),
    "min_snr": _WeightPowers(0, 0, 0),  # for alpha^2 / sigma^2 below gamma; see `loss_weight`
}


class Objective(Configurable):
    """The training objective of an interpolant model, which also defines the meaning of the network's raw output.

    Args:
        schedule: path from data (t = 0) to noise (t = 1): "linear", "gvp" (cosine and sine) or "vp" (diffusion).
        prediction: quantity that the network predicts.
        weighting: "uniform" is the plain squared error of the prediction; "velocity" and "noise" weight it so that the
            loss equals that of a velocity or noise model; "likelihood" multiplies the squared score error by half the
            squared diffusion coefficient, which bounds the likelihood (ScoreSDE, arXiv:2011.13456; arXiv:2101.09258);
            "min_snr" multiplies the squared data error by min(SNR, snr_gamma), SNR = alpha^2 / sigma^2
            (arXiv:2303.09556).
        time_sampling: distribution of training times; "logit_normal" is the sigmoid of a normal (arXiv:2403.03206).
        logit_mean: mean of that normal distribution; positive values give more times near noise.
        logit_std: standard deviation of that normal distribution, > 0.
        time_shift: replaces training times t by shift t / (1 + (shift - 1) t), for both distributions; values above 1
            give more times near noise, which suits large images (arXiv:2403.03206); > 0. Samplers shift their time grid
            in the same way. See `resolution_shift`.
        snr_gamma: maximum of the weight "min_snr", > 0.
        time_margin: distance, in (0, 0.5), that training and sampling keep from t = 0 or t = 1 if the target, its
            weight or its conversion to a velocity is infinite there; see `time_range`. With prediction "data" and
            weighting "velocity", the weight at the margin m is 1 / m^2 on the linear path.

    Raises: UserError for an unknown option or a number out of range.
    """

    def __init__(
        self,
        schedule: ScheduleName = "linear",
        prediction: PredictionType = "velocity",
        weighting: Weighting = "uniform",
        time_sampling: TimeSampling = "uniform",
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
        time_margin: float = 1e-3,
        time_shift: float = 1.0,
        snr_gamma: float = 5.0,
    ) -> None:
        self.path = make_schedule(schedule)
        _check_choice("prediction", prediction, get_args(PredictionType))
        _check_choice("weighting", weighting, get_args(Weighting))
        _check_choice("time_sampling", time_sampling, get_args(TimeSampling))
        check_numbers("objective", logit_mean=logit_mean)
        check_numbers("objective", above=0, logit_std=logit_std, time_shift=time_shift, snr_gamma=snr_gamma)
        check_numbers("objective", above=0, below=0.5, time_margin=time_margin)
        self.schedule: ScheduleName = schedule
        self.prediction: PredictionType = prediction
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

        This is [0, 1] except for margins. There is a margin at t = 0 for score and data prediction, on the VP path, and
        for weights that grow as 1 / sigma. There is a margin at t = 1 for score and noise prediction (conversion to a
        velocity needs 1 / alpha) and for weights that grow as 1 / alpha, but not on the VP path, where alpha > 0.
        """
        powers = self._weight_powers()
        at_data = self.prediction in ("score", "data") or self.path.sigma_rate_diverges or powers.sigma < 0
        at_noise = self.path.reaches_pure_noise and (self.prediction in ("score", "noise") or powers.alpha < 0)
        return (self.time_margin if at_data else 0.0, 1.0 - self.time_margin if at_noise else 1.0)

    def sample_time(self, generators: list[torch.Generator], *, device: torch.device | str = "cpu") -> Tensor:
        """Draw (B,) float32 training times in (0, 1) and within `time_range`, element i from generator i."""
        if self.time_sampling == "uniform":
            fraction = rand_per_sample(generators)
        else:
            fraction = torch.sigmoid(self.logit_mean + self.logit_std * randn_per_sample(generators, ()))
        if self.time_shift != 1:
            fraction = shift_time(fraction, self.time_shift)
        return to_device(_stretch(fraction, *self.time_range), device)

    def validation_times(self, sample_ids: Tensor) -> Tensor:
        """Return (B,) float32 times that depend only on the sample ids, (B,) int64, and cover `time_range` evenly.

        They do not depend on `time_sampling` and `time_shift`; see `even_times`.
        """
        return even_times(sample_ids, *self.time_range)

    def training_loss(self, network: Network, x_data: Tensor, x_noise: Tensor, t: Tensor) -> Tensor:
        """Return the weighted mean squared error of each sample, (B,); see `evaluate`."""
        return self.evaluate(network, x_data, x_noise, t).loss

    def evaluate(self, network: Network, x_data: Tensor, x_noise: Tensor, t: Tensor) -> Evaluation:
        """Call the network at x_t and compute the loss of its output, in float32 (float64 for float64 data).

        Args:
            network: network(x_t, t) -> raw output in the shape of x_t.
            x_data: (B, ...) clean latents.
            x_noise: (B, ...) standard normal noise.
            t: (B,) times in `time_range`.

        Raises: UserError if the shapes of the inputs or of the output do not match.
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
        """Return the weight of the squared error of the raw output at time t, in the shape and dtype of `t`."""
        powers = self._weight_powers()
        path = self.path.coefficients(t)
        weight = torch.ones_like(t)
        for base, power in zip((path.determinant, path.alpha, path.sigma), powers, strict=True):
            weight = weight * base**power if power else weight
        if self.weighting == "min_snr":  # min(SNR, gamma) times the squared data error, which is the noise error / SNR
            weight = weight * (self.snr_gamma * (path.sigma / path.alpha) ** 2).clamp(max=1)
        return weight

    def velocity(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Convert a raw output (B, ...) at x_t (B, ...) and t (B,) to the velocity dx_t/dt, in x_t's dtype."""
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


def shift_time(t: Time, shift: float) -> Time:
    """Return shift t / (1 + (shift - 1) t), which is closer to noise for shift > 1 (arXiv:2403.03206, eq. 23)."""
    return shift * t / (1 + (shift - 1) * t)


def resolution_shift(num_tokens: int, base_tokens: int) -> float:
    """Return the `time_shift` for images of `num_tokens` tokens, sqrt(num_tokens / base_tokens).

    With more pixels, the same noise level hides less of the image. On the linear path, this shift gives the mean of
    num_tokens noisy pixels the uncertainty that base_tokens have at the unshifted time (arXiv:2403.03206, eq. 23).

    Args:
        num_tokens: tokens, or pixels, of the images, >= 1.
        base_tokens: number of tokens for which a shift of 1 is good, >= 1.

    Raises: UserError for a number out of range.
    """
    check_whole_numbers("resolution_shift", num_tokens=num_tokens, base_tokens=base_tokens)
    return math.sqrt(num_tokens / base_tokens)


def even_times(sample_ids: Tensor, low: float, high: float) -> Tensor:
    """Return (B,) float32 times in [low, high], without exactly 0 and 1, that depend only on sample ids, (B,) int64.

    Time i is at the fractional part of 1/2 + i / golden ratio, so that consecutive ids cover the range evenly.
    """
    # Exact in wrapping integers for ids of any size; the signed result / 2^64 is the fraction minus 1/2.
    multiple = sample_ids.to("cpu", torch.int64) * _GOLDEN_STEP
    return _stretch(multiple.double() / 2.0**64 + 0.5, low, high).to(sample_ids.device)


def _stretch(fraction: Tensor, low: float, high: float) -> Tensor:
    """Map [0, 1] to [low, high], in float32, excluding exactly 0 and 1."""
    half_ulp = torch.finfo(torch.float32).eps / 2
    return (low + (high - low) * fraction.double()).float().clamp(half_ulp, 1 - half_ulp)


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"objective.{option}: unknown {value!r}: choose one of {', '.join(choices)}")
