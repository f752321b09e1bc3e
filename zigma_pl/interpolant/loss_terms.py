"""Terms that are added to the interpolant loss in training, each named in YAML with a weight and a schedule.

Axes: B batch, L tokens, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from zigma_pl.batch import Batch
from zigma_pl.errors import UserError
from zigma_pl.interpolant.objective import Evaluation, Objective
from zigma_pl.mixers import Branch
from zigma_pl.ranges import check_numbers


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


@contextmanager
def tapped(backbone: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Within the block, keep what the named layers give when the backbone is called.

    Args:
        backbone: the network.
        layers: names as in `backbone.named_modules()`.

    Yields: a dictionary that fills up with the layers' output. Of a block that returns its tokens with a branch that
        has yet to be added, the sum.

    Raises: UserError for a layer that the backbone does not have.
    """
    features: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, arguments: Any, output: Any) -> None:
        features[name] = _tokens_of(output)

    with ExitStack() as hooks:
        for name in layers:
            hooks.callback(_layer(backbone, name).register_forward_hook(partial(keep, name)).remove)
        yield features


def _layer(backbone: nn.Module, name: str) -> nn.Module:
    try:
        return backbone.get_submodule(name)
    except AttributeError:
        children = ", ".join(child for child, _ in backbone.named_children())
        raise UserError(
            f"loss term: the backbone has no layer {name!r}; layers are named from {children}, such as blocks.0"
        ) from None


def _tokens_of(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    x, carry = output
    if isinstance(carry, Branch):  # which the next norm would add
        return x + carry.gate * carry.raster_rows()
    return x if carry is None else x + carry
