"""Additional terms of the training loss, configured in YAML with a weight and a range of steps.

Axes: B batch, L tokens, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from zigma_pl.core.batch import Batch
from zigma_pl.core.ranges import check_numbers, check_whole_numbers
from zigma_pl.interpolant.objective import Evaluation, Objective


class LossInputs(NamedTuple):
    """Inputs of a loss term.

    batch: clean latents (B, ...), conditions, sample ids, and the images if the data set provides them.
    t: (B,) times.
    evaluation: x_t, the raw output of the network, its target and the loss of each sample.
    objective: converts the raw output, for example by `objective.data(output, x_t, t)`.
    features: output of each of the term's `layers`, by name; for blocks, tokens (B, L, D) in raster order.
    """

    batch: Batch
    t: Tensor
    evaluation: Evaluation
    objective: Objective
    features: Mapping[str, Tensor]


class LossTerm(nn.Module, ABC):
    """A term that is added to the objective's training loss; subclasses implement `forward`.

    Parameters of a term, such as those of a projection head, are optimised, clipped and saved together with the
    backbone's, but not exported. Terms do not contribute to the validation loss.

    Args:
        weight: factor of the term in the total loss.
        start_step: first optimiser step in which the term is active.
        end_step: first optimiser step in which it is no longer active; None to keep it active.
        layers: layers of the backbone whose output the term uses, such as "blocks.3".
        averaged: include the term's parameters in the exponential moving average; otherwise the averaged weights
            contain a copy of the current parameters.

    Attributes:
        needs_images: whether the term uses `LossInputs.batch.images`.
    """

    needs_images: ClassVar[bool] = False

    def __init__(
        self,
        weight: float = 1.0,
        start_step: int = 0,
        end_step: int | None = None,
        layers: Sequence[str] = (),
        averaged: bool = False,
    ) -> None:
        super().__init__()
        check_whole_numbers("loss term", least=0, start_step=start_step)
        check_whole_numbers("loss term", least=start_step + 1, end_step=end_step)
        check_numbers("loss term", weight=weight)
        self.weight = weight
        self.start_step = start_step
        self.end_step = end_step
        self.layers = tuple(layers)
        self.averaged = averaged

    def is_active(self, step: int) -> bool:
        """Return whether the term is active in an optimiser step."""
        return self.start_step <= step and (self.end_step is None or step < self.end_step)

    def attach(self, backbone: nn.Module) -> None:
        """Create the parts that depend on the backbone, such as a head of its width; called when the model is built."""

    def prepare(self) -> None:
        """Load what only training needs, such as a frozen network; called before training starts."""

    @abstractmethod
    def forward(self, inputs: LossInputs) -> Tensor:
        """Return the value of the term for each sample, (B,)."""
