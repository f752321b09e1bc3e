"""Correctness checks that run before anything is timed."""

from collections.abc import Iterable

import torch
from torch import Tensor

FLOOR = 0.01


class WrongNumbersError(Exception):
    """A contestant's results differ from the reference; the message has one line per finding."""


def raise_if_any(subject: str, findings: Iterable[str]) -> None:
    """Raise a WrongNumbersError if there are findings."""
    lines = [f"bench {subject}: {finding}; nothing was timed" for finding in findings]
    if lines:
        raise WrongNumbersError("\n".join(lines))


def relative_error(tested: Iterable[Tensor], exact: Iterable[Tensor]) -> float:
    """Return the largest |tested - exact| / |exact| of all tensors, in float64 on the CPU; NaN if any contains NaN.

    The denominator is at least FLOOR times the norm of all tensors, since tensors that should be almost zero have
    rounding errors from larger ones.
    """
    references = [tensor.detach().double().cpu() for tensor in exact]
    norms = torch.stack([reference.norm() for reference in references])
    errors = [(t.detach().double().cpu() - r).norm() for t, r in zip(tested, references, strict=True)]
    return float((torch.stack(errors) / norms.clamp(min=FLOOR * float(norms.norm()))).max())


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype, such as "bfloat16" for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")
