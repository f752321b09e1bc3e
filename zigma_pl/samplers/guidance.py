"""Classifier-free guidance (arXiv:2207.12598), limited to an interval of times if wished (arXiv:2404.07724)."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from zigma_pl.errors import UserError
from zigma_pl.interpolant.objective import Network
from zigma_pl.ranges import check_numbers


class GuidableBackbone(Protocol):
    """What guidance needs of a backbone; see the backbones' contract."""

    has_null_condition: bool

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Tensor | None = None,
        caption_mask: Tensor | None = None,
        condition_dropped: Tensor | None = None,
    ) -> Tensor:
        """Return the raw output, in the shape of x_t."""


@dataclass(frozen=True)
class Guidance:
    """How strongly to lean on the condition, and when.

    Args:
        scale: the output is null + scale (conditional - null): 1 is plain conditional sampling, 0 ignores the
            condition, more than 1 exaggerates it; >= 0.
        interval: lowest and highest time, both included, at which to guide; outside it sampling is plainly conditional.
            t = 0 is data, t = 1 noise.

    Raises: UserError for a scale or interval out of range.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_numbers("guidance", least=0, scale=self.scale)
        if len(self.interval) != 2 or not 0 <= self.interval[0] < self.interval[1] <= 1:
            raise UserError(f"guidance.interval: need 0 <= low < high <= 1, got {tuple(self.interval)}")


def guided_network(
    backbone: GuidableBackbone,
    condition: Tensor | None,
    caption_mask: Tensor | None = None,
    guidance: Guidance | None = None,
) -> Network:
    """Close a backbone over the conditions of a batch, as the network(x_t, t) that samplers take.

    Velocity, score and noise are affine in one another with the same x_t, so guiding the raw output guides them all.

    Args:
        backbone: called with `condition_dropped`, (2B,) bool, true on the second half, where it guides.
        condition: class ids (B,), caption features (B, T, d), or None to sample without a condition whatever the
            scale.
        caption_mask: (B, T) bool or None.
        guidance: None for scale 1, one conditional evaluation.

    Raises: UserError when guidance is asked of a backbone that has no null condition.
    """
    guidance = guidance or Guidance()
    if guidance.scale != 1 and not backbone.has_null_condition:
        raise UserError(f"guidance.scale: {guidance.scale} needs a backbone trained with a null condition; set it to 1")
    if condition is None:
        return lambda x_t, t: backbone(x_t, t)
    if guidance.scale == 1:
        return lambda x_t, t: backbone(x_t, t, condition, caption_mask)
    doubled_condition = torch.cat([condition, condition])
    doubled_mask = None if caption_mask is None else torch.cat([caption_mask, caption_mask])

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        inside = _inside(t, guidance.interval)
        if inside is not None and not bool(inside.any()):
            return backbone(x_t, t, condition, caption_mask)
        dropped = torch.arange(2 * len(x_t), device=x_t.device) >= len(x_t)
        doubled = backbone(torch.cat([x_t, x_t]), torch.cat([t, t]), doubled_condition, doubled_mask, dropped)
        conditional, null = doubled.chunk(2)
        # In float32: a large scale would amplify the rounding of a difference taken in bfloat16.
        conditional, null = conditional.to(x_t.dtype), null.to(x_t.dtype)
        guided = null + guidance.scale * (conditional - null)
        if inside is None:
            return guided
        return torch.where(inside.reshape(-1, *(1,) * (x_t.ndim - 1)), guided, conditional)

    return network


def _inside(t: Tensor, interval: tuple[float, float]) -> Tensor | None:
    """Return which samples are inside, (B,) bool; None where all are, without waiting for the device."""
    low, high = interval
    return None if low <= 0 and high >= 1 else (t >= low) & (t <= high)
