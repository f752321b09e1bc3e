"""DiT, the diffusion transformer: adaLN-Zero blocks of self-attention and an MLP.

Axes: B batch, F frames (videos only), C channels, H W latent grid, L tokens, T caption tokens, D width.
"""

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from zigma_pl.models.backbones.base import checked_options, resolve_size
from zigma_pl.models.backbones.token_backbone import TokenBackbone, all_conditioners, make_cross_attention
from zigma_pl.models.block import BlockConditions, FinalLayer, modulate, zero_linear
from zigma_pl.models.conditioners import ConditionerOptions, Entry
from zigma_pl.models.layers.cross_attention import CrossAttention
from zigma_pl.models.layers.embeddings import PositionKind
from zigma_pl.models.layers.mlp import MLP
from zigma_pl.models.mixers import Mixer, MixerOptions, SelfAttention, Visit
from zigma_pl.models.mixers.base import layers_of
from zigma_pl.models.mixers.sequences import Sequences
from zigma_pl.scan.schedule import ScanConfig

Size = Literal["S", "B", "L", "XL"]

# (width, depth) from table 1 of the paper.
SIZES: dict[str, tuple[int, int]] = {"S": (384, 12), "B": (768, 12), "L": (1024, 24), "XL": (1152, 28)}


class DiT(TokenBackbone):
    """Diffusion transformer (arXiv:2212.09748); classes are added to the time embedding, captions cross-attended.

    Args:
        in_channels: C, channels of the latents (or pixels). On the command line, in_channels, latent_height,
            latent_width, latent_frames, num_classes and caption_dim default to those of the data module.
        latent_height: H, height of the latents.
        latent_width: W, width of the latents.
        patch_size: side of the square patches, each of which is one token; must divide H and W.
        latent_frames: F, frames of the latents of a video, each cut into patches; None for images.
        size: named preset of (width, depth, heads): S (384, 12, 6), B (768, 12, 12), L (1024, 24, 16),
            XL (1152, 28, 16).
        width: D; overrides the preset.
        depth: number of layers; overrides the preset.
        mixers: the mixer of all layers, or a list of mixers that is repeated over the layers; None for self-attention
            as in the paper.
        scan: visit orders for mixers that use them.
        mlp_ratio: hidden width of the MLP divided by D. The paper has 4; with 4.5 every size has ZigMa's number of
            parameters within 3 % (both without captions, for which ZigMa has twice as many cross-attentions).
        position_embedding: none, cosine (fixed, as in the paper) or learnable.
        num_classes: number of classes to condition on; None for no class condition.
        caption_dim: feature width of the captions to condition on; None for no caption condition.
        null_condition: learn null entries for "no class" and "no caption", which guidance and condition dropout need.
        conditioners: conditioners of additional conditions by name, such as a map that is concatenated to x_t; "class"
            or "caption" replaces the default conditioner.
        attention_heads: heads of the cross-attention to captions.
        attention_head_dim: width of each cross-attention head.
        gradient_checkpointing: recompute each block in the backward pass instead of storing its activations.
    """

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
        scan: ScanConfig = ScanConfig(),  # noqa: B008  a frozen dataclass
        mlp_ratio: float = 4.5,
        position_embedding: PositionKind = "cosine",
        num_classes: int | None = None,
        caption_dim: int | None = None,
        null_condition: bool = True,
        conditioners: dict[str, ConditionerOptions] | None = None,
        attention_heads: int = 8,
        attention_head_dim: int = 64,
        gradient_checkpointing: bool = False,
    ) -> None:
        mixers = mixers or SelfAttention(qk_norm=False)
        config = checked_options(locals())
        width, depth = resolve_size(SIZES, size, width, depth)
        conditioners = all_conditioners(config, conditioners)
        super().__init__(width, config, conditioners)
        self.choose(mixers=mixers)
        layers = layers_of(mixers, depth)
        self.register_orders(layers, scan)
        self.blocks = nn.ModuleList(
            DiTBlock(
                *(width, layer, mlp_ratio), make_cross_attention(width, config, conditioners), self.sequences(order)
            )
            for layer, order in zip(layers, self.layer_orders, strict=True)
        )
        self.final_layer = FinalLayer(width, self.patch_features)

    def run_layers(self, x: Tensor, t: Tensor, entries: list[Entry]) -> Tensor:
        """Run the blocks and the final layer, all modulated by the time and the conditions."""
        conditions = self.block_conditions(t, entries)
        for layer, block in enumerate(self.blocks):
            x = self.run_block(block, x, conditions, self.visit(layer))
        return self.final_layer(x, None, conditions)


class DiTBlock(nn.Module):
    """A mixer, optional cross-attention, and an MLP, each as x + gate * branch(modulate(norm(x)))."""

    def __init__(
        self,
        width: int,
        mixer: MixerOptions,
        mlp_ratio: float,
        cross_attention: CrossAttention | None = None,
        sequences: Sequences | None = None,
    ) -> None:
        super().__init__()
        self.num_branches = 2 if cross_attention is None else 3
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mixer: Mixer = mixer.build(width)
        self.sequences = sequences
        self.cross_attention = cross_attention
        self.mlp = MLP(width, mlp_ratio)
        self.modulation = nn.Sequential(nn.SiLU(), zero_linear(width, 3 * self.num_branches * width))
        for layer in (*self.mixer.projections(), self.mlp.hidden, self.mlp.out_proj):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, conditions: BlockConditions, visit: Visit) -> Tensor:
        """Run the block on x, (B, L, D)."""
        modulation = self.modulation(conditions.modulation)[:, None].chunk(3 * self.num_branches, dim=-1)
        shift, scale, gate = modulation[:3]
        tokens = modulate(self.norm(x), shift, scale)
        mix = self.mixer.mix if self.sequences is None else partial(self.sequences.mix, self.mixer)
        x = torch.addcmul(x, gate, mix(tokens, visit))
        if self.cross_attention is not None:
            shift, scale, gate = modulation[6:]
            query = modulate(self.norm(x), shift, scale)
            x = torch.addcmul(x, gate, self.cross_attention(query, conditions.tokens, conditions.bias))
        shift, scale, gate = modulation[3:6]
        return torch.addcmul(x, gate, self.mlp(modulate(self.norm(x), shift, scale)))
