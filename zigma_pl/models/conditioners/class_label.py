"""The class condition, which modulates the blocks."""

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
    """Embeds class ids (B,) as (B, D). The null entry is the last row of the table."""

    def __init__(self, num_classes: int, width: int, has_null: bool = True, dropout: float = 0.0) -> None:
        super().__init__(has_null, dropout)
        self.num_classes = num_classes
        self.table = nn.Embedding(num_classes + int(has_null), width)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, condition: Condition, dropped: Tensor | None = None) -> Entry:
        """Return the embeddings of the classes, (B, D)."""
        class_ids = condition.values
        if dropped is not None:
            class_ids = torch.where(dropped, self.num_classes, class_ids)
        return Entry(modulation=self.table(class_ids))

    def check(self, name: str, condition: Condition, batch_size: int) -> None:
        """Raise UserError unless the condition has integers (B,)."""
        ids = condition.values
        if ids.ndim != 1 or ids.is_floating_point():
            raise UserError(f"condition {name!r}: expected class ids of shape (B,), got {ids.dtype} {tuple(ids.shape)}")
        check_shape("condition", name, ids, "(B,)", batch_size)

    def placeholder(self, batch_size: int, device: torch.device) -> Condition:
        """Return the first class."""
        return Condition(torch.zeros(batch_size, dtype=torch.int64, device=device))


@dataclass(frozen=True)
class ClassLabel(ConditionerOptions):
    """A class label, whose embedding is added to the time embedding.

    Args:
        num_classes: number of classes; None for num_classes of the backbone, which follows the data.
        dropout: fraction of training samples in which the class is dropped, independent of other conditions.
        null: learn a null entry for "no class", which guidance and dropout need.
    """

    num_classes: int | None = None
    dropout: float = 0.0
    null: bool = True

    def build(self, sizes: Sizes) -> ClassConditioner:
        """Build the conditioner."""
        num_classes = sizes.num_classes if self.num_classes is None else self.num_classes
        if num_classes is None:
            raise UserError("ClassLabel: the data have no classes: set num_classes, or leave out the conditioner")
        check_whole_numbers("ClassLabel", most=MAX_CLASSES, num_classes=num_classes)
        return ClassConditioner(num_classes, sizes.width, self.null, self.dropout)
