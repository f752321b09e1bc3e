"""The velocity loss: an error that is comparable between runs with different predictions, weightings and paths.

A network output at x_s = alpha_s x + sigma_s e, on any path, determines estimates D of the data x and E of the noise e
with x_s = alpha_s D + sigma_s E. Divided by alpha_s + sigma_s, x_s is the point of the linear path at

    t = sigma_s / (alpha_s + sigma_s),    x_s / (alpha_s + sigma_s) = (1 - t) x + t e,

which has the same signal-to-noise ratio, (1 - t)^2 / t^2 = alpha_s^2 / sigma_s^2. Both points contain the same
information, so the best possible D and E are the same for every path. The velocity of the linear path is e - x, and its
estimate E - D, so the loss of a sample is the mean over its entries of

    ((E - D) - (e - x))^2.

Since alpha_s (D - x) + sigma_s (E - e) = 0, this is the squared error of the raw output times the square of

    velocity: (alpha + sigma) / (alpha sigma' - sigma alpha')      noise: (alpha + sigma) / alpha
    score: sigma (alpha + sigma) / alpha                           data: (alpha + sigma) / sigma

The factor is exactly 1 for velocity prediction on the linear path, where the velocity loss is the unweighted loss.
"""

from torch import Tensor

from zigma_pl.interpolant.conversions import Quantity
from zigma_pl.interpolant.objective import Evaluation, Objective, even_times
from zigma_pl.interpolant.schedules import PathCoefficients


def linear_times(sample_ids: Tensor) -> Tensor:
    """Return the times t on the linear path, (B,) float32, which depend only on the sample ids, (B,) int64.

    They cover [0, 1] evenly and are the same for every objective: those of `Objective().validation_times`.
    """
    return even_times(sample_ids, 0.0, 1.0)


def equivalent_times(objective: Objective, t: Tensor) -> Tensor:
    """Return the times, (B,) float32, at which the objective's path has the signal-to-noise ratio of `t`, (B,).

    Times outside the objective's `time_range`, where the network is not trained, are replaced by its nearest end. With
    the default margin of 0.001 these are at most 0.2 % of the samples on the linear path, 0.3 % on the GVP path, and
    1.7 % on the VP path, which does not reach pure noise.
    """
    return objective.path.time_of_noise_fraction(t.double()).float().clamp(*objective.time_range)


def has_linear_times(objective: Objective) -> bool:
    """Whether `equivalent_times` returns the times that it is given, for all times."""
    return objective.schedule == "linear" and objective.time_range == (0.0, 1.0)


def velocity_loss(objective: Objective, evaluation: Evaluation, s: Tensor) -> Tensor:
    """Return the velocity loss of each sample, (B,), in the dtype of `evaluation.loss`.

    Args:
        objective: the objective that returned `evaluation`.
        evaluation: output and target at `s`.
        s: (B,) times on the objective's path, in its `time_range`.
    """
    error = evaluation.output.to(evaluation.loss.dtype) - evaluation.target
    factor = _factor(objective.prediction, objective.path.coefficients(s)).to(error.dtype)
    return factor.square() * error.square().flatten(1).mean(1)


def _factor(prediction: Quantity, path: PathCoefficients) -> Tensor:
    """Return the error of the linear path's velocity per error of the prediction, up to its sign."""
    total = path.alpha + path.sigma
    if prediction == "velocity":
        return total / path.determinant
    if prediction == "data":
        return total / path.sigma
    of_noise = total / path.alpha
    return of_noise if prediction == "noise" else path.sigma * of_noise
