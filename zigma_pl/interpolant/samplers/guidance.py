"""Classifier-free guidance (arXiv:2207.12598), limited to an interval of times if wished (arXiv:2404.07724)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from zigma_pl.core.batch import Condition, Conditions
from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_numbers
from zigma_pl.interpolant.objective import Network


class GuidableBackbone(Protocol):
    """What guidance needs of a backbone; see the backbones' contract."""

    @property
    def droppable_conditions(self) -> tuple[str, ...]:
        """Names of the conditions that have a null entry."""

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        conditions: Conditions | None = None,
        dropped: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the raw output, in the shape of x_t."""


@dataclass(frozen=True)
class Guidance:
    """How strongly to lean on the conditions, and when.

    Args:
        scale: the output is null + scale (conditional - null): 1 is plain conditional sampling, 0 ignores the
            conditions, more than 1 exaggerates them; >= 0.
        interval: lowest and highest time, both included, at which to guide; outside it sampling is plainly conditional.
            t = 0 is data, t = 1 noise.
        drop: names of the conditions that "null" is without, such as ["caption"]; None for all that have a null entry.

    Raises: UserError for a scale or interval out of range.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    drop: list[str] | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_numbers("guidance", least=0, scale=self.scale)
        if len(self.interval) != 2 or not 0 <= self.interval[0] < self.interval[1] <= 1:
            raise UserError(f"guidance.interval: need 0 <= low < high <= 1, got {tuple(self.interval)}")
        if self.drop == []:
            raise UserError("guidance.drop is empty: name at least one condition, or leave the option out")


def guided_network(
    backbone: GuidableBackbone, conditions: Conditions | None, guidance: Guidance | None = None
) -> Network:
    """Close a backbone over the conditions of a batch, as the network(x_t, t) that samplers take.

    Velocity, score and noise are affine in one another with the same x_t, so guiding the raw output guides them all.

    Args:
        backbone: called with `dropped`, (2B,) bool for each condition that guidance drops, true on the second half,
            where it guides.
        conditions: by name; None or empty to sample without a condition whatever the scale.
        guidance: None for scale 1, one conditional evaluation.

    Raises: UserError when guidance drops a condition that the backbone has no null entry for.
    """
    guidance = guidance or Guidance()
    names = _dropped_names(backbone, guidance)
    if not conditions:
        return lambda x_t, t: backbone(x_t, t)
    if guidance.scale == 1:
        return lambda x_t, t: backbone(x_t, t, conditions)
    doubled_conditions = {name: _doubled(condition) for name, condition in conditions.items()}
    names = [name for name in names if name in conditions]

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        inside = _inside(t, guidance.interval)
        if inside is not None and not bool(inside.any()):
            return backbone(x_t, t, conditions)
        second_half = torch.arange(2 * len(x_t), device=x_t.device) >= len(x_t)
        dropped = dict.fromkeys(names, second_half)
        doubled = backbone(torch.cat([x_t, x_t]), torch.cat([t, t]), doubled_conditions, dropped)
        conditional, null = doubled.chunk(2)
        # In float32: a large scale would amplify the rounding of a difference taken in bfloat16.
        conditional, null = conditional.to(x_t.dtype), null.to(x_t.dtype)
        guided = null + guidance.scale * (conditional - null)
        if inside is None:
            return guided
        return torch.where(inside.reshape(-1, *(1,) * (x_t.ndim - 1)), guided, conditional)

    return network


def _dropped_names(backbone: GuidableBackbone, guidance: Guidance) -> list[str]:
    """Return the conditions that guidance drops; none at scale 1."""
    if guidance.scale == 1:
        return []
    droppable = backbone.droppable_conditions
    if not droppable:
        raise UserError(f"guidance.scale: {guidance.scale} needs a backbone trained with a null condition; set it to 1")
    unknown = set(guidance.drop or ()) - set(droppable)
    if unknown:
        raise UserError(
            f"guidance.drop: {sorted(unknown)[0]!r} is no condition that this backbone can drop: choose of "
            f"{', '.join(droppable)}"
        )
    return list(droppable if guidance.drop is None else guidance.drop)


def _doubled(condition: Condition) -> Condition:
    values, mask = condition
    return Condition(torch.cat([values, values]), None if mask is None else torch.cat([mask, mask]))


def _inside(t: Tensor, interval: tuple[float, float]) -> Tensor | None:
    """Return which samples are inside, (B,) bool; None where all are, without waiting for the device."""
    low, high = interval
    return None if low <= 0 and high >= 1 else (t >= low) & (t <= high)
