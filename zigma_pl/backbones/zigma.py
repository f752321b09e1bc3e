"""ZigMa: a diffusion backbone of Mamba layers, each scanning the grid along its own zigzag.

Axes: B batch, C channels, H W latent grid, L tokens, T caption tokens, D width.
"""

from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zigma_pl.backbones.base import Backbone
from zigma_pl.errors import UserError
from zigma_pl.nn.block import FinalLayer, Residual, ZigzagBlock
from zigma_pl.nn.cross_attention import CrossAttention
from zigma_pl.nn.embeddings import (
    CaptionEmbedding,
    ClassEmbedding,
    PatchEmbedding,
    PositionEmbedding,
    PositionKind,
    TimeEmbedding,
    masked_mean,
    unpatchify,
)
from zigma_pl.nn.mixer import MambaMixer
from zigma_pl.ops.selective_scan import ScanBackend
from zigma_pl.scan.schedule import ScanConfig

Size = Literal["S", "B", "L", "XL"]

# (width, depth): the widths of DiT's sizes, with two Mamba layers for each of its attention + perceptron layers.
SIZES: dict[str, tuple[int, int]] = {"S": (384, 24), "B": (768, 24), "L": (1024, 48), "XL": (1152, 56)}


class ZigMa(Backbone):
    """Zigzag Mamba (arXiv:2403.13802): layer i scans the tokens along order Omega_i = S_{i mod k}.

    Args:
        in_channels: C, channels of the latents (or pixels).
        latent_height: H of the latents.
        latent_width: W of the latents.
        patch_size: side of the square patch that makes one token; H and W must be divisible by it.
        size: named preset of (width, depth): S (384, 24), B (768, 24), L (1024, 48), XL (1152, 56).
        width: D; overrides the preset.
        depth: number of layers; overrides the preset.
        state_size: states for each inner channel of the scan, N.
        expand: inner width over D.
        conv_kernel: taps of the causal convolution.
        scan: which family of orders, and how many of them the layers cycle through.
        position_embedding: none, cosine (fixed) or learnable.
        num_classes: classes to condition on; None for none.
        caption_dim: width of the caption features to condition on; None for none.
        null_condition: learn an entry for "no condition"; guidance and condition dropout need it.
        attention_heads: heads of the cross-attention to captions.
        attention_head_dim: width of each head.
        residual: "prenorm", or "legacy", the form of the released ZigMa checkpoints.
        gradient_checkpointing: recompute each block in the backward pass instead of keeping its activations.
        scan_backend: which implementation runs the scan; "auto" chooses by device.
    """

    def __init__(
        self,
        in_channels: int,
        latent_height: int,
        latent_width: int,
        patch_size: int = 1,
        size: Size | None = None,
        width: int | None = None,
        depth: int | None = None,
        state_size: int = 16,
        expand: int = 2,
        conv_kernel: int = 4,
        scan: ScanConfig = ScanConfig(),  # noqa: B008  a frozen dataclass
        position_embedding: PositionKind = "learnable",
        num_classes: int | None = None,
        caption_dim: int | None = None,
        null_condition: bool = True,
        attention_heads: int = 8,
        attention_head_dim: int = 64,
        residual: Residual = "prenorm",
        gradient_checkpointing: bool = False,
        scan_backend: ScanBackend = "auto",
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        config["scan"] = asdict(scan)
        super().__init__((in_channels, latent_height, latent_width), num_classes, caption_dim, null_condition, config)
        width, depth = resolve_size(size, width, depth)
        self.patch_size = patch_size
        self.gradient_checkpointing = gradient_checkpointing
        self.patch_embedding = PatchEmbedding(in_channels, latent_height, latent_width, patch_size, width)
        grid = self.patch_embedding.grid
        self.position_embedding = PositionEmbedding(position_embedding, grid, width)
        self.time_embedding = TimeEmbedding(width)
        if num_classes is not None:
            self.class_embedding = ClassEmbedding(num_classes, width, null_condition)
        if caption_dim is not None:
            self.caption_embedding = CaptionEmbedding(caption_dim, width, null_condition)

        def make_block() -> ZigzagBlock:
            mixer = MambaMixer(width, state_size, expand, conv_kernel, scan_backend)
            attention = CrossAttention(width, attention_heads, attention_head_dim) if caption_dim is not None else None
            return ZigzagBlock(width, mixer, attention, residual)

        self.blocks = nn.ModuleList(make_block() for _ in range(depth))
        self.final_layer = FinalLayer(width, patch_size**2 * in_channels, residual)
        orders, self.layer_orders = scan.layer_orders(depth, *grid)
        # Derived from the configuration, so never saved: an order in a checkpoint could be averaged or go stale.
        for index, order in enumerate(orders):
            self.register_buffer(f"visit_order_{index}", torch.as_tensor(order, dtype=torch.int32), persistent=False)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ZigMa":
        """Build the backbone that `config`, a `Backbone.config` of plain types, describes."""
        return cls(**{**config, "scan": ScanConfig(**config["scan"])})

    def visit_order(self, layer: int) -> Tensor:
        """Return the order (L,) int32 that the given layer scans along: Omega_i = S_{i mod k}."""
        return self.get_buffer(f"visit_order_{self.layer_orders[layer]}")

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Tensor | None = None,
        caption_mask: Tensor | None = None,
        condition_dropped: Tensor | None = None,
    ) -> Tensor:
        """Predict (B, C, H, W); see Backbone.forward for the arguments."""
        self.check_inputs(x_t, condition)
        if condition is None:
            condition, condition_dropped = self.null_condition_for(x_t)
        conditioning, caption, caption_mask = self.embed_conditioning(t, condition, caption_mask, condition_dropped)
        # In x_t's dtype, float32 under autocast too: the residual stream adds up small updates over many layers.
        x = self.position_embedding(self.patch_embedding(x_t).to(x_t.dtype))
        residual = None
        for layer, block in enumerate(self.blocks):
            arguments = (x, residual, conditioning, self.visit_order(layer), caption, caption_mask)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x, residual = checkpoint(block, *arguments, use_reentrant=False)
            else:
                x, residual = block(*arguments)
        patches = self.final_layer(x, residual, conditioning)
        return unpatchify(patches, self.patch_embedding.grid, self.patch_size)

    def embed_conditioning(
        self, t: Tensor, condition: Tensor | None, caption_mask: Tensor | None, dropped: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return what modulates the blocks, (B, D), and the caption tokens (B, T, D) with their mask, if any."""
        conditioning = self.time_embedding(t)
        if condition is None:
            return conditioning, None, None
        if self.num_classes is not None:
            return conditioning + self.class_embedding(condition, dropped), None, None
        caption, caption_mask = self.caption_embedding(condition, caption_mask, dropped)
        return conditioning + masked_mean(caption, caption_mask), caption, caption_mask


def resolve_size(size: Size | None, width: int | None, depth: int | None) -> tuple[int, int]:
    """Return (width, depth) from a preset, explicit numbers, or a preset with one of them replaced."""
    preset = SIZES[size] if size is not None else (None, None)
    width, depth = width or preset[0], depth or preset[1]
    if width is None or depth is None:
        raise UserError(f"a backbone needs a size ({', '.join(SIZES)}) or both width and depth")
    return width, depth
