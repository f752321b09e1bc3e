"""Backbones of adaLN-Zero blocks around any mixers: they differ by their plan of mixers and by their scan.

Axes: B batch, F frames (videos only), C channels, H W latent grid, L tokens, T caption tokens, D width.
"""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from zigma_pl.models.backbones.base import checked_options, resolve_size
from zigma_pl.models.backbones.token_backbone import TokenBackbone, all_conditioners, make_cross_attention
from zigma_pl.models.block import Carry, FinalLayer, Residual, ZigzagBlock
from zigma_pl.models.conditioners import ConditionerOptions, Entry
from zigma_pl.models.layers.cross_attention import CrossAttention
from zigma_pl.models.layers.embeddings import PositionKind
from zigma_pl.models.mixers import Mamba, MixerOptions
from zigma_pl.models.mixers.base import Plan, layers_of
from zigma_pl.scan.schedule import ScanConfig

Size = Literal["S", "B", "L", "XL"]

# (width, depth): the widths of DiT's sizes, with two Mamba layers for each of its attention + perceptron layers.
SIZES: dict[str, tuple[int, int]] = {"S": (384, 24), "B": (768, 24), "L": (1024, 48), "XL": (1152, 56)}


class MixerBackbone(TokenBackbone):
    """adaLN-Zero blocks, each around the mixer that the plan gives its layer. A subclass has a plan and a scan.

    Args:
        in_channels: C, channels of the latents (or pixels). On the command line this, height, width, frames, classes
            and caption width are those of the data module where they are not given.
        latent_height: H of the latents.
        latent_width: W of the latents.
        patch_size: side of the square patch that makes one token; H and W must be divisible by it.
        latent_frames: F, frames of a video's latents, each cut into patches by itself; None for pictures.
        size: named preset of (width, depth): S (384, 24), B (768, 24), L (1024, 48), XL (1152, 56). Depths are those of
            Mamba; of other mixers there are as many layers as come closest to its number of parameters.
        width: D; overrides the preset.
        depth: number of layers; overrides the preset.
        mixers: the mixer of every layer, or a plan of several that the layers repeat; None for the backbone's own.
        scan: which family of orders, how many of them the layers take in turn, and how clips are scanned; None for the
            backbone's own.
        position_embedding: none, cosine (fixed) or learnable.
        num_classes: classes to condition on; None for none.
        caption_dim: width of the caption features to condition on; None for none.
        null_condition: learn an entry for "no class" and "no caption"; guidance and condition dropout need it.
        conditioners: how further conditions of the data enter, by name, such as a map beside x_t; one named "class" or
            "caption" takes the place of the plain one.
        attention_heads: heads of the cross-attention to captions.
        attention_head_dim: width of each head.
        residual: "prenorm", or "legacy", the form of the released ZigMa checkpoints.
        gradient_checkpointing: recompute each block in the backward pass instead of keeping its activations.
    """

    own_scan: ClassVar[ScanConfig] = ScanConfig()

    @classmethod
    @abstractmethod
    def own_mixers(cls, scan: ScanConfig) -> Plan:
        """Return the plan that a backbone has unless it is given another."""

    def __init__(
        self,
        in_channels: int | None = None,
        latent_height: int | None = None,
        latent_width: int | None = None,
        patch_size: int = 1,
        latent_frames: int | None = None,
        size: Size | None = None,
        width: int | None = None,
        depth: int | None = None,
        mixers: MixerOptions | list[MixerOptions] | None = None,
        scan: ScanConfig | None = None,
        position_embedding: PositionKind = "learnable",
        num_classes: int | None = None,
        caption_dim: int | None = None,
        null_condition: bool = True,
        conditioners: dict[str, ConditionerOptions] | None = None,
        attention_heads: int = 8,
        attention_head_dim: int = 64,
        residual: Residual = "prenorm",
        gradient_checkpointing: bool = False,
    ) -> None:
        scan = scan or self.own_scan
        mixers = mixers or self.own_mixers(scan)
        config = checked_options(locals())
        conditioners = all_conditioners(config, conditioners)
        attention = partial(make_cross_attention, config=config, conditioners=conditioners)
        width, depth = matched_size(size, width, depth, mixers, attention)
        super().__init__(width, config, conditioners)
        self.choose(mixers=mixers, scan=scan)
        layers = layers_of(mixers, depth)
        self.hold_orders(layers, scan)
        self.blocks = nn.ModuleList(
            ZigzagBlock(*(width, layer.build(width), attention(width), residual, self.sequences(order)))
            for layer, order in zip(layers, self.layer_orders, strict=True)
        )
        self.final_layer = FinalLayer(width, self.patch_features, residual)

    def run_layers(self, x: Tensor, t: Tensor, entries: list[Entry]) -> Tensor:
        """Run the blocks, each along its own order, and the final layer."""
        conditions = self.block_conditions(t, entries)
        carry: Carry = None
        for layer, block in enumerate(self.blocks):
            x, carry = self.run_block(block, x, carry, conditions, self.visit(layer))
        return self.final_layer(x, carry, conditions)


def matched_size(
    size: Size | None,
    width: int | None,
    depth: int | None,
    mixers: Plan,
    attention: Callable[[int], CrossAttention | None],
) -> tuple[int, int]:
    """Return (width, depth).

    A preset's depth is that of layers of Mamba. With other mixers it becomes the whole number of layers whose
    parameters come closest to those of the preset; an explicit depth is taken as it is.
    """
    width, preset_depth = resolve_size(SIZES, size, width, depth)
    entries = mixers if isinstance(mixers, list) else [mixers]
    if depth is not None or all(isinstance(entry, Mamba) for entry in entries):
        return width, preset_depth

    def num_parameters(entry: MixerOptions) -> int:
        block = ZigzagBlock(width, entry.build(width), attention(width))
        return sum(parameter.numel() for parameter in block.parameters())

    with torch.device("meta"):
        per_layer = sum(map(num_parameters, entries)) / len(entries)
        return width, max(1, round(preset_depth * num_parameters(Mamba()) / per_layer))
