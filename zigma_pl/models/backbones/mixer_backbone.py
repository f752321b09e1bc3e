"""Backbones of adaLN-Zero blocks around token mixers, which differ in their mixers and their scan.

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
from zigma_pl.models.block import FinalLayer, Pending, Residual, ZigzagBlock
from zigma_pl.models.conditioners import ConditionerOptions, Entry
from zigma_pl.models.layers.cross_attention import CrossAttention
from zigma_pl.models.layers.embeddings import PositionKind
from zigma_pl.models.mixers import Mamba, MixerOptions
from zigma_pl.models.mixers.base import Plan, layers_of
from zigma_pl.scan.schedule import ScanConfig

Size = Literal["S", "B", "L", "XL"]

# (width, depth): widths as in DiT, with two Mamba layers for each of DiT's layers of attention and MLP.
SIZES: dict[str, tuple[int, int]] = {"S": (384, 24), "B": (768, 24), "L": (1024, 48), "XL": (1152, 56)}


class MixerBackbone(TokenBackbone):
    """adaLN-Zero blocks, each around a token mixer. Subclasses define the default mixers and the default scan.

    Args:
        in_channels: C, channels of the latents (or pixels). On the command line, in_channels, latent_height,
            latent_width, latent_frames, num_classes and caption_dim default to those of the data module.
        latent_height: H, height of the latents.
        latent_width: W, width of the latents.
        patch_size: side of the square patches, each of which is one token; must divide H and W.
        latent_frames: F, frames of the latents of a video, each cut into patches; None for images.
        size: named preset of (width, depth): S (384, 24), B (768, 24), L (1024, 48), XL (1152, 56). The depths are for
            Mamba; with other mixers, the depth is chosen to match the number of parameters.
        width: D; overrides the preset.
        depth: number of layers; overrides the preset.
        mixers: the mixer of all layers, or a list of mixers that is repeated over the layers; None for the default of
            the backbone.
        scan: family of visit orders, how many of them the layers cycle through, and how clips are scanned; None for the
            default of the backbone.
        position_embedding: none, cosine (fixed) or learnable.
        num_classes: number of classes to condition on; None for no class condition.
        caption_dim: feature width of the captions to condition on; None for no caption condition.
        null_condition: learn null entries for "no class" and "no caption", which guidance and condition dropout need.
        conditioners: conditioners of additional conditions by name, such as a map that is concatenated to x_t; "class"
            or "caption" replaces the default conditioner.
        attention_heads: heads of the cross-attention to captions.
        attention_head_dim: width of each cross-attention head.
        residual: "prenorm", or "legacy" for the residual connections of the released ZigMa checkpoints.
        gradient_checkpointing: recompute each block in the backward pass instead of storing its activations.
    """

    default_scan: ClassVar[ScanConfig] = ScanConfig()

    @classmethod
    @abstractmethod
    def default_mixers(cls, scan: ScanConfig) -> Plan:
        """Return the mixers that are used if the option `mixers` is None."""

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
        scan = scan or self.default_scan
        mixers = mixers or self.default_mixers(scan)
        config = checked_options(locals())
        conditioners = all_conditioners(config, conditioners)
        attention = partial(make_cross_attention, config=config, conditioners=conditioners)
        width, depth = matched_size(size, width, depth, mixers, attention)
        super().__init__(width, config, conditioners)
        self.choose(mixers=mixers, scan=scan)
        layers = layers_of(mixers, depth)
        self.register_orders(layers, scan)
        self.blocks = nn.ModuleList(
            ZigzagBlock(*(width, layer.build(width), attention(width), residual, self.sequences(order)))
            for layer, order in zip(layers, self.layer_orders, strict=True)
        )
        self.final_layer = FinalLayer(width, self.patch_features, residual)

    def run_layers(self, x: Tensor, t: Tensor, entries: list[Entry]) -> Tensor:
        """Run the blocks, each along its own visit order, and the final layer."""
        conditions = self.block_conditions(t, entries)
        pending: Pending = None
        for layer, block in enumerate(self.blocks):
            x, pending = self.run_block(block, x, pending, conditions, self.visit(layer))
        return self.final_layer(x, pending, conditions)


def matched_size(
    size: Size | None,
    width: int | None,
    depth: int | None,
    mixers: Plan,
    attention: Callable[[int], CrossAttention | None],
) -> tuple[int, int]:
    """Return (width, depth).

    The depth of a preset is for Mamba layers. With other mixers it becomes the integer that matches the preset's number
    of parameters best; an explicit depth is not changed.
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
