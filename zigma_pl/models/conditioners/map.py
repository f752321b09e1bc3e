"""Map conditions, such as edges, depth or a mask, which are concatenated to x_t as channels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zigma_pl.core.batch import Condition
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.models.conditioners.base import Conditioner, ConditionerOptions, Entry, Sizes
from zigma_pl.models.layers.shapes import check_shape

MAX_CHANNELS = 4096


class MapConditioner(Conditioner):
    """Concatenates maps (B, C, H, W), (B, F, C, H, W) for videos, to x_t. The null entry is zero everywhere.

    Args:
        map_shape: (C, H, W), or (F, C, H, W) for videos.
        dropout: fraction of training samples in which the map is dropped.
    """

    def __init__(self, map_shape: tuple[int, ...], dropout: float = 0.0) -> None:
        super().__init__(dropout=dropout)
        self.map_shape = map_shape

    def forward(self, condition: Condition, dropped: Tensor | None = None) -> Entry:
        """Return the maps, with zeros for dropped samples."""
        maps = condition.values
        if dropped is not None:
            maps = maps.masked_fill(dropped.reshape(-1, *(1,) * len(self.map_shape)), 0.0)
        return Entry(channels=maps)

    def check(self, name: str, condition: Condition, batch_size: int) -> None:
        """Raise UserError for maps of another shape."""
        axes = "(B, F, C, H, W)" if len(self.map_shape) == 4 else "(B, C, H, W)"
        check_shape("condition", name, condition.values, axes, batch_size, *self.map_shape)

    def placeholder(self, batch_size: int, device: torch.device) -> Condition:
        """Return maps of zeros."""
        return Condition(torch.zeros(batch_size, *self.map_shape, device=device))


@dataclass(frozen=True)
class Map(ConditionerOptions):
    """A map with the latents' height and width, concatenated to x_t as additional input channels.

    Args:
        num_channels: channels of the map.
        dropout: fraction of training samples in which the map is dropped, independent of other conditions.
    """

    num_channels: int = 1
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Check the number of channels."""
        check_whole_numbers("Map", most=MAX_CHANNELS, num_channels=self.num_channels)

    def num_input_channels(self) -> int:
        """Return the channels of the map."""
        return self.num_channels

    def build(self, sizes: Sizes) -> MapConditioner:
        """Build the conditioner."""
        *frames, _, height, width = sizes.latent_shape
        return MapConditioner((*frames, self.num_channels, height, width), self.dropout)
