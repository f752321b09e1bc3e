"""Range checks of numeric options, called in constructors so that they hold for YAML and Python alike.

Counts also have an upper bound, so that absurd values are rejected before memory is allocated for them.
"""

import math
from numbers import Integral, Real
from typing import Any

from zigma_pl.core.errors import UserError

LARGEST_COUNT = 10**9
LARGEST_SEED = 2**32 - 1  # the limit of NumPy and Lightning


def check_whole_numbers(owner: str, least: int = 1, most: int = LARGEST_COUNT, **counts: Any) -> None:
    """Raise UserError unless every option is an integer from `least` to `most`.

    Args:
        owner: class or group that the options belong to, for the error.
        least, most: the range, inclusive.
        counts: values by option name; None for an omitted option.
    """
    for name, value in counts.items():
        if value is None:
            continue
        is_whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not is_whole or not (least <= int(value) <= most):
            raise UserError(f"{owner}.{name}: must be a whole number from {least:,} to {most:,}, got {_shown(value)}")


def check_numbers(
    owner: str,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
    **numbers: Any,
) -> None:
    """Raise UserError unless every option is a finite number with least <= number <= most and above < number < below.

    Args:
        owner: class or group that the options belong to, for the error.
        least, above, most, below: the range.
        numbers: values by option name; None for an omitted option.
    """
    bounds = {">=": least, ">": above, "<=": most, "<": below}
    wanted = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds.items() if math.isfinite(bound))
    for name, value in numbers.items():
        if value is None:
            continue
        is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or not (least <= value <= most and above < value < below):
            raise UserError(f"{owner}.{name}: must be a finite number {wanted}, got {_shown(value)}")


def _shown(value: Any) -> str:
    """Return a short text for any value."""
    too_long = isinstance(value, Integral) and value.bit_length() > 200  # type: ignore[attr-defined]
    return "a number of more than 60 digits" if too_long else repr(value)[:60]
