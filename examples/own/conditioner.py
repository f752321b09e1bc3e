"""The brightness of an image as condition, and a data set that provides it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from own.data_set import Shapes
from zigma_pl import UserError
from zigma_pl.conditioners import Condition, Conditioner, ConditionerOptions, Entry, Sizes
from zigma_pl.data import RawBatch


class BrightnessConditioner(Conditioner):
    """Embeds numbers (B,) in [0, 1] with cosine features; the null entry is a learned vector."""

    def __init__(self, width: int, num_frequencies: int, dropout: float) -> None:
        super().__init__(has_null=True, dropout=dropout)
        self.register_buffer("frequencies", torch.pi * torch.arange(1, num_frequencies + 1), persistent=False)
        self.projection = nn.Linear(num_frequencies, width)
        self.null = nn.Parameter(torch.zeros(width))

    def forward(self, condition: Condition, dropped: Tensor | None = None) -> Entry:
        """Return (B, D), which is added to the modulation of the blocks."""
        embedded = self.projection(torch.cos(condition.values[:, None] * self.frequencies))
        if dropped is not None:
            embedded = torch.where(dropped[:, None], self.null, embedded)
        return Entry(modulation=embedded)

    def check(self, name: str, condition: Condition, batch_size: int) -> None:
        """Raise UserError if the values are not (B,)."""
        if condition.values.shape != (batch_size,):
            raise UserError(f"condition {name!r}: expected ({batch_size},), got {tuple(condition.values.shape)}")

    def placeholder(self, batch_size: int, device: torch.device) -> Condition:
        """Return values for samples without this condition; they are replaced by the null entry."""
        return Condition(torch.zeros(batch_size, device=device))


@dataclass(frozen=True)
class Brightness(ConditionerOptions):
    """Options of the brightness: number of cosine features, and fraction of training samples that drop it."""

    num_frequencies: int = 8
    dropout: float = 0.1

    def build(self, sizes: Sizes) -> BrightnessConditioner:
        """Build the conditioner for a network of these sizes."""
        return BrightnessConditioner(sizes.width, self.num_frequencies, self.dropout)


class BrightShapes(Shapes):
    """Shapes with the conditions "class" and "brightness"."""

    def encode_conditions(self, raw: RawBatch, device: torch.device | str) -> dict[str, Condition]:
        """Return the conditions of a batch by name; prepared latents come without images."""
        conditions = super().encode_conditions(raw, device)
        if raw.images is not None:
            conditions["brightness"] = Condition(raw.images.float().mean(dim=(1, 2, 3)) / 255)
        return conditions
