"""Power-function averages of weights, and the combination of some that is closest to another (arXiv:2312.02696).

The average at time t weights the weights at time s in [0, t] by (exponent + 1) s^exponent / t^(exponent + 1). Its width
is given as `sigma_rel`, the standard deviation of that profile relative to t. Does not import torch.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64] | float

MAX_SIGMA_REL = 12**-0.5  # all steps have the same weight


class Profile(NamedTuple):
    """A power-function average.

    step: optimiser step at which it ends.
    sigma_rel: relative width, above 0 and at most `MAX_SIGMA_REL`.
    """

    step: int
    sigma_rel: float


def exponent_of(sigma_rel: float) -> float:
    """Return the exponent, >= 0, whose profile has this width.

    The width is sqrt(e + 1) / ((e + 2) sqrt(e + 3)), so the exponent is the largest root of a cubic polynomial.
    """
    inverse = sigma_rel**-2
    return max(0.0, float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max()))


def decay(step: int, exponent: float) -> float:
    """Return the factor of the old average in the update of a step >= 1; that of the new weights is 1 - decay.

    Repeated updates give exactly the average of weights that are constant within each step.
    """
    return float((1 - 1 / step) ** (exponent + 1))


def combination(snapshots: Sequence[Profile], wanted: Profile) -> tuple[NDArray[np.float64], float]:
    """Return the combination of profiles that is closest to another, by least squares.

    Args:
        snapshots: the profiles to combine, all different, none of a later step than `wanted`.
        wanted: the profile to approximate.

    Returns: the coefficients, which sum to 1, and the norm of the error relative to that of the wanted profile.
    """
    steps = np.array([snapshot.step for snapshot in snapshots]) / wanted.step
    exponents = np.array([exponent_of(snapshot.sigma_rel) for snapshot in snapshots])
    exponent = exponent_of(wanted.sigma_rel)
    products = _product(steps[:, None], exponents[:, None], steps[None], exponents[None])
    with_wanted, of_wanted = _product(steps, exponents, 1.0, exponent), _product(1.0, exponent, 1.0, exponent)
    found = np.linalg.solve(products, with_wanted)
    found /= found.sum()
    squared_error = found @ products @ found - 2 * found @ with_wanted + of_wanted
    return found, float(max(0.0, squared_error / of_wanted) ** 0.5)


def _product(t: Values, a: Values, u: Values, b: Values) -> Any:
    """Return the inner products of the profiles that end at t and u and have exponents a and b."""
    first = np.minimum(t, u)
    return (a + 1) * (b + 1) / (a + b + 1) * (first / t) ** a * (first / u) ** b * first / (t * u)
