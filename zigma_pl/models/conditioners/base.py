"""What a conditioner promises.

Axes: B batch, F frames (videos only), C channels, H W latent grid, T tokens of a condition, D width.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from zigma_pl.core.batch import Condition
from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_numbers


class Entry(NamedTuple):
    """How a condition enters the network: in one or more of three ways, the others are None.

    modulation: (B, D), added to what modulates the blocks.
    tokens: (B, T, D), which the blocks attend to.
    mask: (B, T) bool, True on tokens that count; None where all do.
    channels: (B, C, H, W), of videos (B, F, C, H, W), put beside the channels of x_t.
    dropped: (B,) bool, True where the tokens repeat a single null token; None where they nowhere do.
    """

    modulation: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    channels: Tensor | None = None
    dropped: Tensor | None = None


class Conditioner(nn.Module, ABC):
    """Embeds one condition; holds its null entry, which takes its place where it is dropped.

    Args:
        has_null: whether there is a null entry, which guidance and dropout need.
        dropout: share of training samples in which this condition is dropped, whatever becomes of the others.

    Raises: UserError for a dropout that is out of range, or without a null entry.
    """

    def __init__(self, has_null: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        check_numbers("conditioner", least=0, most=1, dropout=dropout)
        if dropout and not has_null:
            raise UserError(f"conditioner.dropout: {dropout} needs a null entry; set null to true, or dropout to 0")
        self.has_null = has_null
        self.dropout = dropout

    @abstractmethod
    def forward(self, condition: Condition, dropped: Tensor | None = None) -> Entry:
        """Embed a condition; samples where `dropped`, (B,) bool, is True get the null entry."""

    @abstractmethod
    def check(self, name: str, condition: Condition, batch_size: int) -> None:
        """Raise UserError when the condition, which has this name, is not what this conditioner takes."""

    @abstractmethod
    def placeholder(self, batch_size: int, device: torch.device) -> Condition:
        """Return a condition of any value, to be dropped: for samples without a condition."""


class Sizes(NamedTuple):
    """What a network is built for, as far as its conditioners need to know.

    width: D.
    latent_shape: (C, H, W) of x_t, of videos (F, C, H, W).
    num_classes: classes of the data, None for none.
    caption_dim: width of the features of the data's captions, None for none.
    """

    width: int
    latent_shape: tuple[int, ...]
    num_classes: int | None
    caption_dim: int | None


class ConditionerOptions(ABC):
    """The options of a conditioner; subclasses are frozen dataclasses, named in YAML by class_path.

    gives_tokens: whether its entry has tokens, for which a backbone needs cross-attention.
    """

    gives_tokens: ClassVar[bool] = False

    def channels_beside_x_t(self) -> int:
        """Return how many channels its entry has."""
        return 0

    @abstractmethod
    def build(self, sizes: Sizes) -> Conditioner:
        """Make the conditioner for a network of these sizes."""


def joined_tokens(entries: list[Entry]) -> tuple[Tensor | None, Tensor | None]:
    """Return the tokens of all entries as one sequence (B, T, D) with its mask (B, T); None without tokens."""
    parts = [(entry.tokens, entry.mask) for entry in entries if entry.tokens is not None]
    if not parts:
        return None, None
    tokens = torch.cat([part for part, _ in parts], dim=1)
    if all(mask is None for _, mask in parts):
        return tokens, None
    masks = [part.new_ones(part.shape[:2], dtype=torch.bool) if mask is None else mask for part, mask in parts]
    return tokens, torch.cat(masks, dim=1)
