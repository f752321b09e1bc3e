"""The caption condition: the blocks attend to its tokens and are modulated by their mean."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from zigma_pl.core.batch import Condition
from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.models.conditioners.base import Conditioner, ConditionerOptions, Entry, Sizes
from zigma_pl.models.layers.shapes import check_shape

MAX_DIM = 65_536


class CaptionConditioner(Conditioner):
    """Projects caption features (B, T, caption_dim) to tokens (B, T, D). The null entry is a learned token."""

    parameter_roles: ClassVar[dict[str, str]] = {"null_token": "embedding"}

    def __init__(self, caption_dim: int, width: int, has_null: bool = True, dropout: float = 0.0) -> None:
        super().__init__(has_null, dropout)
        self.caption_dim = caption_dim
        self.projection = nn.Linear(caption_dim, width)
        self.null_token = nn.Parameter(torch.empty(caption_dim).normal_(std=0.02)) if has_null else None

    def forward(self, condition: Condition, dropped: Tensor | None = None) -> Entry:
        """Return the tokens, their mask and their mean; all tokens of a dropped caption are the null token."""
        features, mask = condition
        features = features.to(self.projection.weight.dtype)
        if dropped is not None:
            assert self.null_token is not None
            features = torch.where(dropped[:, None, None], self.null_token, features)
            mask = None if mask is None else mask | dropped[:, None]
        tokens = self.projection(features)
        return Entry(masked_mean(tokens, mask), tokens, mask, dropped=dropped)

    def check(self, name: str, condition: Condition, batch_size: int) -> None:
        """Raise UserError unless the condition has features (B, T, caption_dim) and a mask (B, T) or None."""
        features, mask = condition
        if features.ndim != 3 or features.shape[-1] != self.caption_dim:
            raise UserError(
                f"condition {name!r}: expected caption features (B, T, {self.caption_dim}), got "
                f"{tuple(features.shape)}: set caption_dim to the text encoder's width"
            )
        check_shape("condition", name, features, "(B, T, D)", batch_size, None, None)
        if mask is not None:
            check_shape("condition", f"mask of {name}", mask, "(B, T)", *features.shape[:2])

    def placeholder(self, batch_size: int, device: torch.device) -> Condition:
        """Return a single token."""
        return Condition(torch.zeros(batch_size, 1, self.caption_dim, device=device))


def masked_mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean (B, D) over the tokens (B, T, D) for which mask (B, T) is True."""
    if mask is None:
        return tokens.mean(dim=1)
    weights = mask.to(tokens.dtype)[..., None]
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


@dataclass(frozen=True)
class Caption(ConditionerOptions):
    """A caption: the blocks attend to its tokens, and their mean is added to the time embedding.

    Args:
        caption_dim: feature width of a token; None for caption_dim of the backbone, which follows the data.
        dropout: fraction of training samples in which the caption is dropped, independent of other conditions.
        null: learn a null entry for "no caption", which guidance and dropout need.
    """

    caption_dim: int | None = None
    dropout: float = 0.0
    null: bool = True
    gives_tokens: ClassVar[bool] = True

    def build(self, sizes: Sizes) -> CaptionConditioner:
        """Build the conditioner."""
        caption_dim = sizes.caption_dim if self.caption_dim is None else self.caption_dim
        if caption_dim is None:
            raise UserError("Caption: the data have no captions: set caption_dim, or leave out the conditioner")
        check_whole_numbers("Caption", most=MAX_DIM, caption_dim=caption_dim)
        return CaptionConditioner(caption_dim, sizes.width, self.null, self.dropout)
