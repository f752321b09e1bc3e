"""Terms that are added to the interpolant loss in training, each named in YAML with a weight and a schedule.

Axes: B batch, L tokens, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from zigma_pl.core.batch import Batch
from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_numbers
from zigma_pl.interpolant.objective import Evaluation, Objective


class LossInputs(NamedTuple):
    """What a loss term can read.

    batch: the batch: clean latents (B, ...), conditions, sample ids, and the pictures where the data set gives them.
    t: (B,) times.
    evaluation: x_t, the network's raw output, its target and the error of each sample.
    objective: converts the raw output, such as `objective.data(output, x_t, t)`.
    features: what each layer that the term names gave, by name; tokens (B, L, D) in raster order for a block.
    """

    batch: Batch
    t: Tensor
    evaluation: Evaluation
    objective: Objective
    features: Mapping[str, Tensor]


class LossTerm(nn.Module, ABC):
    """One term of the training loss beside the objective's own; subclasses give `forward`.

    A term's parameters, such as those of a projection head, are optimised, clipped and saved with the backbone's, and
    left out of an export. Terms play no part in the validation loss.

    Args:
        weight: factor of the term in the total loss.
        start_step: optimiser step from which the term counts.
        end_step: optimiser step from which it no longer does; None for never.
        layers: layers of the backbone whose output the term reads, such as "blocks.3".
        averaged: keep an exponential moving average of the term's parameters like that of the backbone's; otherwise the
            averaged weights hold a copy of the parameters themselves.
    """

    def __init__(
        self,
        weight: float = 1.0,
        start_step: int = 0,
        end_step: int | None = None,
        layers: Sequence[str] = (),
        averaged: bool = False,
    ) -> None:
        super().__init__()
        if start_step < 0 or (end_step is not None and end_step <= start_step):
            raise UserError(f"loss term: need 0 <= start_step < end_step, got {start_step} and {end_step}")
        check_numbers("loss term", weight=weight)
        self.weight = weight
        self.start_step = start_step
        self.end_step = end_step
        self.layers = tuple(layers)
        self.averaged = averaged

    def is_active(self, step: int) -> bool:
        """Whether the term counts in an optimiser step."""
        return self.start_step <= step and (self.end_step is None or step < self.end_step)

    @abstractmethod
    def forward(self, inputs: LossInputs) -> Tensor:
        """Return the term of each sample, (B,)."""
