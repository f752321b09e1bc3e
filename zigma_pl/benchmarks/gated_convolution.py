"""A cheap mixer without custom kernels, for measuring the cost of reordering its rows."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.models.mixers import Mixer, MixerOptions, Visit


class GatedConvolutionMixer(Mixer):
    """Causal depthwise convolution along the visit order, between two linear layers.

    Args:
        width: D.
        kernel_size: number of tokens in the convolution's window.
    """

    takes_rows_in_visit_order: ClassVar[bool] = True

    def __init__(self, width: int, kernel_size: int) -> None:
        super().__init__()
        self.in_projection = nn.Linear(width, 2 * width)
        self.convolution = nn.Conv1d(width, width, kernel_size, padding=kernel_size - 1, groups=width)
        self.out_projection = nn.Linear(width, width)

    def forward(self, tokens: Tensor, visit: Visit) -> Tensor:
        """Mix tokens (B, L, D)."""
        values, gate = self.in_projection(tokens).chunk(2, dim=-1)
        mixed = self.convolution(values.transpose(1, 2))[..., : tokens.shape[1]].transpose(1, 2)
        return self.out_projection(mixed * gate.sigmoid())


@dataclass(frozen=True)
class GatedConvolution(MixerOptions):
    """Options of `GatedConvolutionMixer`."""

    kernel_size: int = 4

    def __post_init__(self) -> None:
        """Check the range."""
        check_whole_numbers("GatedConvolution", most=4096, kernel_size=self.kernel_size)

    def build(self, width: int) -> GatedConvolutionMixer:
        """Build one layer."""
        return GatedConvolutionMixer(width, self.kernel_size)
