"""What is checked before anything is timed: a fast wrong contestant is no contestant."""

from collections.abc import Iterable

import torch
from torch import Tensor

FLOOR = 0.01


class WrongNumbersError(Exception):
    """A contestant computes something else than the reference; the message has one line for each finding."""


def raise_if_any(subject: str, findings: Iterable[str]) -> None:
    """Raise WrongNumbersError when there are findings.

    Raises: WrongNumbersError.
    """
    lines = [f"bench {subject}: {finding}; nothing was timed" for finding in findings]
    if lines:
        raise WrongNumbersError("\n".join(lines))


def relative_error(tested: Iterable[Tensor], exact: Iterable[Tensor]) -> float:
    """Return the largest |tested - exact| / |exact| of all tensors, in float64 on the CPU; NaN where one holds NaN.

    A tensor's norm counts as FLOOR of the norm of all at least, as rounding elsewhere reaches what is nearly zero.
    """
    references = [tensor.detach().double().cpu() for tensor in exact]
    norms = torch.stack([reference.norm() for reference in references])
    errors = [(t.detach().double().cpu() - r).norm() for t, r in zip(tested, references, strict=True)]
    return float((torch.stack(errors) / norms.clamp(min=FLOOR * float(norms.norm()))).max())


def dtype_name(dtype: torch.dtype) -> str:
    """Return bfloat16 for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")
