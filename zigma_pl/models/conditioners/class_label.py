"""A class as condition: it modulates the blocks."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zigma_pl.core.batch import Condition
from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.models.conditioners.base import Conditioner, ConditionerOptions, Entry, Sizes
from zigma_pl.models.layers.shapes import check_shape

MAX_CLASSES = 10_000_000


class ClassConditioner(Conditioner):
    """Look class ids (B,) up as (B, D). The null entry is the last row of the table."""

    def __init__(self, num_classes: int, width: int, has_null: bool = True, dropout: float = 0.0) -> None:
        super().__init__(has_null, dropout)
        self.num_classes = num_classes
        self.table = nn.Embedding(num_classes + int(has_null), width)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, condition: Condition, dropped: Tensor | None = None) -> Entry:
        """Return the rows of the classes, (B, D)."""
        class_ids = condition.values
        if dropped is not None:
            class_ids = torch.where(dropped, self.num_classes, class_ids)
        return Entry(modulation=self.table(class_ids))

    def check(self, name: str, condition: Condition, batch_size: int) -> None:
        """Raise UserError for anything but integers (B,)."""
        ids = condition.values
        if ids.ndim != 1 or ids.is_floating_point():
            raise UserError(f"condition {name!r}: expected class ids of shape (B,), got {ids.dtype} {tuple(ids.shape)}")
        check_shape("condition", name, ids, "(B,)", batch_size)

    def placeholder(self, batch_size: int, device: torch.device) -> Condition:
        """Return the first class."""
        return Condition(torch.zeros(batch_size, dtype=torch.int64, device=device))


@dataclass(frozen=True)
class ClassLabel(ConditionerOptions):
    """A class, embedded and added to the embedding of the time.

    Args:
        num_classes: how many there are; None for those of the backbone, which are the data's.
        dropout: share of training samples in which the class is dropped, whatever becomes of other conditions.
        null: learn an entry for "no class"; guidance and dropout need it.
    """

    num_classes: int | None = None
    dropout: float = 0.0
    null: bool = True

    def build(self, sizes: Sizes) -> ClassConditioner:
        """Make the conditioner."""
        num_classes = sizes.num_classes if self.num_classes is None else self.num_classes
        if num_classes is None:
            raise UserError("ClassLabel: the data have no classes: set num_classes, or leave the conditioner out")
        check_whole_numbers("ClassLabel", most=MAX_CLASSES, num_classes=num_classes)
        return ClassConditioner(num_classes, sizes.width, self.null, self.dropout)
