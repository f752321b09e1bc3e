"""Classifier-free guidance (arXiv:2207.12598) and autoguidance (arXiv:2406.02507).

Both can be limited to an interval of times (arXiv:2404.07724).
"""

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
    """Interface of backbones that guidance uses; see `Backbone`."""

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
    """Strength of guidance and the times at which it is applied.

    Args:
        scale: the output is null + scale (conditional - null): 1 is plain conditional sampling, 0 ignores the
            conditions, larger values strengthen them; >= 0. In autoguidance, "null" is the output of the weak model.
        interval: lowest and highest time, inclusive, at which guidance is applied; outside it, sampling is conditional
            without guidance. t = 0 is data, t = 1 is noise.
        drop: names of the conditions that are dropped in the "null" output, such as ["caption"]; None for all
            conditions that have a null entry. Not for autoguidance, which drops none.

    Raises: UserError for a scale or interval out of range.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    drop: list[str] | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_numbers("guidance", least=0, scale=self.scale)
        if len(self.interval) != 2 or not 0 <= self.interval[0] < self.interval[1] <= 1:
            raise UserError(f"guidance.interval: expected 0 <= low < high <= 1, got {tuple(self.interval)}")
        if self.drop == []:
            raise UserError("guidance.drop is empty: name at least one condition, or leave out the option")


def guided_network(
    backbone: GuidableBackbone,
    conditions: Conditions | None,
    guidance: Guidance | None = None,
    *,
    weak: GuidableBackbone | None = None,
) -> Network:
    """Return a network(x_t, t) for samplers, from a backbone, the conditions of a batch and guidance.

    At a given x_t, velocity, score and noise are affine functions of each other, so guidance of the raw output guides
    all of them.

    Args:
        backbone: the network. With classifier-free guidance it is called with a doubled batch and `dropped`, (2B,)
            bool, True on the second half, for each condition that guidance drops.
        conditions: by name; None or empty for unconditional sampling, where only autoguidance has an effect.
        guidance: None for scale 1, which needs a single conditional evaluation.
        weak: for autoguidance, a weaker model trained on the same objective, such as a smaller network or one of an
            earlier step. It is called with the same conditions, and replaces the null output.

    Raises: UserError if guidance drops a condition for which the backbone has no null entry, or drops any condition
        while there is a weak model.
    """
    guidance = guidance or Guidance()
    if weak is not None:
        return _guided_by_weak(backbone, weak, conditions, guidance)
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
        return _guided(x_t, conditional, null, guidance.scale, inside)

    return network


def _guided_by_weak(
    backbone: GuidableBackbone, weak: GuidableBackbone, conditions: Conditions | None, guidance: Guidance
) -> Network:
    if guidance.drop is not None:
        raise UserError("guidance.drop: autoguidance drops no conditions: leave out the option, or the weak model")

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        strong = backbone(x_t, t, conditions or None)
        inside = _inside(t, guidance.interval)
        if guidance.scale == 1 or (inside is not None and not bool(inside.any())):
            return strong
        return _guided(x_t, strong, weak(x_t, t, conditions or None), guidance.scale, inside)

    return network


def _guided(x_t: Tensor, conditional: Tensor, null: Tensor, scale: float, inside: Tensor | None) -> Tensor:
    # In float32, since a large scale would amplify rounding errors of a difference in bfloat16.
    conditional, null = conditional.to(x_t.dtype), null.to(x_t.dtype)
    guided = null + scale * (conditional - null)
    return guided if inside is None else torch.where(inside.reshape(-1, *(1,) * (x_t.ndim - 1)), guided, conditional)


def _dropped_names(backbone: GuidableBackbone, guidance: Guidance) -> list[str]:
    """Return the names of the conditions that guidance drops; none at scale 1."""
    if guidance.scale == 1:
        return []
    droppable = backbone.droppable_conditions
    if not droppable:
        raise UserError(
            f"guidance.scale: {guidance.scale} needs a backbone that was trained with a null condition: set it to 1"
        )
    unknown = set(guidance.drop or ()) - set(droppable)
    if unknown:
        raise UserError(
            f"guidance.drop: {sorted(unknown)[0][:100]!r} is not a condition that this backbone can drop: choose from "
            f"{', '.join(droppable)}"
        )
    return list(droppable if guidance.drop is None else guidance.drop)


def _doubled(condition: Condition) -> Condition:
    values, mask = condition
    return Condition(torch.cat([values, values]), None if mask is None else torch.cat([mask, mask]))


def _inside(t: Tensor, interval: tuple[float, float]) -> Tensor | None:
    """Return which times are inside, (B,) bool; None if the interval is [0, 1], which needs no synchronisation."""
    low, high = interval
    return None if low <= 0 and high >= 1 else (t >= low) & (t <= high)
