"""Base classes of conditioners.

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
    """An embedded condition, which enters the network in one or more of three ways; unused fields are None.

    modulation: (B, D), added to the time embedding that modulates the blocks.
    tokens: (B, T, D), to which the blocks attend.
    mask: (B, T) bool, True on valid tokens; None if all are valid.
    channels: (B, C, H, W), (B, F, C, H, W) for videos, concatenated to the channels of x_t.
    dropped: (B,) bool, True for samples whose tokens all repeat the null token; None if there are no such samples.
    """

    modulation: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    channels: Tensor | None = None
    dropped: Tensor | None = None


class Conditioner(nn.Module, ABC):
    """Embeds one condition, with a null entry for samples in which it is dropped.

    Args:
        has_null: whether there is a null entry, which guidance and dropout need.
        dropout: fraction of training samples in which this condition is dropped, independent of other conditions.

    Raises: UserError for a dropout that is out of range, or without a null entry.
    """

    def __init__(self, has_null: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        check_numbers("conditioner", least=0, most=1, dropout=dropout)
        if dropout and not has_null:
            raise UserError(f"conditioner.dropout: {dropout} needs a null entry: set null to true, or dropout to 0")
        self.has_null = has_null
        self.dropout = dropout

    @abstractmethod
    def forward(self, condition: Condition, dropped: Tensor | None = None) -> Entry:
        """Embed a condition, with the null entry for samples where `dropped`, (B,) bool, is True."""

    @abstractmethod
    def check(self, name: str, condition: Condition, batch_size: int) -> None:
        """Raise UserError, with the name of the condition, if this conditioner cannot embed it."""

    @abstractmethod
    def placeholder(self, batch_size: int, device: torch.device) -> Condition:
        """Return a condition with arbitrary values, to be dropped for samples without a condition."""


class Sizes(NamedTuple):
    """The sizes of a network from which its conditioners are built.

    width: D.
    latent_shape: (C, H, W) of x_t, (F, C, H, W) for videos.
    num_classes: number of classes of the data, None without classes.
    caption_dim: feature width of the captions of the data, None without captions.
    """

    width: int
    latent_shape: tuple[int, ...]
    num_classes: int | None
    caption_dim: int | None


class ConditionerOptions(ABC):
    """Options of a conditioner; subclasses are frozen dataclasses that YAML names by class_path.

    gives_tokens: whether the embedded condition has tokens, for which a backbone needs cross-attention.
    """

    gives_tokens: ClassVar[bool] = False

    def num_input_channels(self) -> int:
        """Return how many channels the embedded condition adds to x_t."""
        return 0

    @abstractmethod
    def build(self, sizes: Sizes) -> Conditioner:
        """Build the conditioner for a network of these sizes."""


def joined_tokens(entries: list[Entry]) -> tuple[Tensor | None, Tensor | None]:
    """Concatenate the tokens of all entries to (B, T, D), with their mask (B, T); both None without tokens."""
    parts = [(entry.tokens, entry.mask) for entry in entries if entry.tokens is not None]
    if not parts:
        return None, None
    tokens = torch.cat([part for part, _ in parts], dim=1)
    if all(mask is None for _, mask in parts):
        return tokens, None
    masks = [part.new_ones(part.shape[:2], dtype=torch.bool) if mask is None else mask for part, mask in parts]
    return tokens, torch.cat(masks, dim=1)
