"""What the Mamba backbones have in common: blocks around mixers that read the tokens along visit orders.

Axes: L tokens that are scanned together, D width.
"""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from zigma_pl.backbones.base import resolve_size
from zigma_pl.backbones.token_backbone import TokenBackbone, make_cross_attention
from zigma_pl.nn.block import FinalLayer, ZigzagBlock
from zigma_pl.nn.mixer import MambaMixer, ParallelMixer

Size = Literal["S", "B", "L", "XL"]

# (width, depth): the widths of DiT's sizes, with two Mamba layers for each of its attention + perceptron layers.
SIZES: dict[str, tuple[int, int]] = {"S": (384, 24), "B": (768, 24), "L": (1024, 48), "XL": (1152, 56)}


class MambaBackbone(TokenBackbone):
    """adaLN-Zero blocks of Mamba mixers. A subclass says which mixers, and which order each layer reads along.

    Args:
        width: D.
        config: the constructor's options by name; beside those of TokenBackbone, residual is read from it.
        mixers: one for each layer.
    """

    def __init__(self, width: int, config: dict[str, Any], mixers: Iterable[MambaMixer | ParallelMixer]) -> None:
        super().__init__(width, config)
        residual = config["residual"]
        self.blocks = nn.ModuleList(
            ZigzagBlock(width, mixer, make_cross_attention(width, config), residual) for mixer in mixers
        )
        self.final_layer = FinalLayer(width, self.patch_features, residual)
        self.layer_orders = [0] * len(self.blocks)

    def hold_orders(self, orders: Iterable[np.ndarray]) -> None:
        """Keep the orders that layers share; `layer_orders` says which one each layer takes, the first if unset."""
        # Derived from the configuration, so never saved: an order in a checkpoint could be averaged or go stale.
        for index, order in enumerate(orders):
            self.register_buffer(f"visit_order_{index}", torch.as_tensor(order, dtype=torch.int32), persistent=False)

    def visit_order(self, layer: int) -> Tensor:
        """Return what the given layer scans along, int32: one order (L,), or its parallel directions' (k, L)."""
        return self.get_buffer(f"visit_order_{self.layer_orders[layer]}")

    def run_layers(
        self,
        x: Tensor,
        t: Tensor,
        condition: Tensor | None,
        caption_mask: Tensor | None,
        condition_dropped: Tensor | None,
    ) -> Tensor:
        """Run the blocks, each along its own order, and the final layer."""
        conditioning, caption, caption_mask = self.embed_conditioning(t, condition, caption_mask, condition_dropped)
        residual = None
        for layer, block in enumerate(self.blocks):
            arguments = (x, residual, conditioning, self.visit_order(layer), caption, caption_mask)
            x, residual = self.run_block(block, *arguments)
        return self.final_layer(x, residual, conditioning)


def resolve_parallel_size(
    size: Size | None, width: int | None, depth: int | None, num_directions: int, config: dict[str, Any]
) -> tuple[int, int]:
    """Return (width, depth) for blocks of parallel directions.

    A preset's depth is lowered to the whole number of layers whose parameters come closest to those of ZigMa's preset,
    whose layers have one direction each; an explicit depth is taken as it is.
    """
    width, single_depth = resolve_size(SIZES, size, width, depth)
    if depth is not None:
        return width, depth
    mixer_options = (config["state_size"], config["expand"], config["conv_kernel"])
    with torch.device("meta"):
        num_single, num_parallel = (
            sum(p.numel() for p in ZigzagBlock(width, mixer, make_cross_attention(width, config)).parameters())
            for mixer in (MambaMixer(width, *mixer_options), ParallelMixer(width, num_directions, *mixer_options))
        )
    return width, max(1, round(single_depth * num_single / num_parallel))
