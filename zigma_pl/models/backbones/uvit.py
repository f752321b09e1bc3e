"""U-ViT: a transformer with time and conditions as tokens, and long skip connections between its halves.

Axes: B batch, F frames (videos only), C channels, H W latent grid, L tokens, T caption tokens, D width.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from zigma_pl.core.batch import Conditions
from zigma_pl.core.errors import UserError
from zigma_pl.models.backbones.base import checked_options, resolve_size
from zigma_pl.models.backbones.token_backbone import TokenBackbone, all_conditioners, gives_tokens
from zigma_pl.models.block import zero_linear
from zigma_pl.models.conditioners import ConditionerOptions, Entry
from zigma_pl.models.conditioners.base import joined_tokens
from zigma_pl.models.layers.embeddings import PositionKind
from zigma_pl.models.layers.mlp import MLP
from zigma_pl.models.mixers import Mixer, MixerOptions, SelfAttention, Visit
from zigma_pl.models.mixers.base import layers_of
from zigma_pl.ops.rows import inverse_order
from zigma_pl.scan.schedule import ScanConfig

Size = Literal["S", "B", "L", "XL"]

# (width, depth): widths as in ZigMa, depths that match ZigMa's number of parameters. B is U-ViT-M of the paper.
SIZES: dict[str, tuple[int, int]] = {"S": (384, 17), "B": (768, 17), "L": (1024, 33), "XL": (1152, 39)}


class UViT(TokenBackbone):
    """U-ViT (arXiv:2209.12152): a transformer over the sequence [time, class or caption, patches].

    Skip connections join the first and the last (depth - 1) // 2 blocks, the innermost ones with each other: the output
    of the early block is concatenated with the input of the late block and projected back to D. Position embeddings are
    added to the patch tokens only. A dropped caption counts as a single null token, independent of the number of
    caption tokens in the batch.

    Args:
        in_channels: C, channels of the latents (or pixels). On the command line, in_channels, latent_height,
            latent_width, latent_frames, num_classes and caption_dim default to those of the data module.
        latent_height: H, height of the latents.
        latent_width: W, width of the latents.
        patch_size: side of the square patches, each of which is one token; must divide H and W.
        latent_frames: F, frames of the latents of a video, each cut into patches; None for images.
        size: named preset of (width, depth, heads): S (384, 17, 6), B (768, 17, 12), L (1024, 33, 16),
            XL (1152, 39, 16), each with ZigMa's number of parameters within 3 % (both without captions).
        width: D; overrides the preset.
        depth: number of layers; overrides the preset.
        mixers: the mixer of all layers, or a list of mixers that is repeated over the layers; None for self-attention
            as in the paper. With captions, all mixers must support masks.
        scan: visit orders for mixers that use them; the tokens before the patches are visited first.
        mlp_ratio: hidden width of the MLP divided by D. The paper has 4; 4.25 matches ZigMa's number of parameters.
        final_convolution: end with the paper's 3 x 3 convolution over the predicted latents.
        position_embedding: none, cosine (fixed) or learnable (as in the paper).
        num_classes: number of classes to condition on; None for no class condition.
        caption_dim: feature width of the captions to condition on; None for no caption condition.
        null_condition: learn null entries for "no class" and "no caption", which guidance and condition dropout need.
        conditioners: conditioners of additional conditions by name, such as a map that is concatenated to x_t; "class"
            or "caption" replaces the default conditioner.
        gradient_checkpointing: recompute each block in the backward pass instead of storing its activations.
    """

    parameter_roles: ClassVar[dict[str, str]] = {
        "projection.weight": "projection",
        "final_convolution.weight": "convolution",
    }

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
        mlp_ratio: float = 4.25,
        final_convolution: bool = True,
        position_embedding: PositionKind = "learnable",
        num_classes: int | None = None,
        caption_dim: int | None = None,
        null_condition: bool = True,
        conditioners: dict[str, ConditionerOptions] | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        mixers = mixers or SelfAttention(bias=False, qk_norm=False)
        config = checked_options(locals())
        width, depth = resolve_size(SIZES, size, width, depth)
        conditioners = all_conditioners(config, conditioners)
        super().__init__(width, config, conditioners)
        self.choose(mixers=mixers)
        layers = layers_of(mixers, depth)
        if gives_tokens(conditioners) and not all(layer.takes_mask for layer in layers):
            raise UserError("mixers: UViT with captions needs mixers that support masks, such as SelfAttention")
        self.register_orders(layers, scan)
        if any(order.axis is not None for order in self.layer_orders):
            raise UserError("scan.video: UViT has no factorized scan: set it to 3d, or use another backbone")
        self.num_skips = (depth - 1) // 2
        self.blocks = nn.ModuleList(
            UViTBlock(width, mixer, mlp_ratio, takes_skip=layer >= depth - self.num_skips)
            for layer, mixer in enumerate(layers)
        )
        self.norm = nn.LayerNorm(width)
        # The prediction starts at zero, the convolution as the identity: if it were zero too, nothing else would learn.
        self.projection = zero_linear(width, self.patch_features)
        self.final_convolution = identity_convolution(self.latent_shape[-3]) if final_convolution else nn.Identity()

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        conditions: Conditions | None = None,
        dropped: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Predict (B, C, H, W), (B, F, C, H, W) for videos; see `Backbone.forward` for the arguments."""
        prediction = super().forward(x_t, t, conditions, dropped)
        return self.final_convolution(prediction.flatten(0, -4)).reshape(x_t.shape)

    def run_layers(self, x: Tensor, t: Tensor, entries: list[Entry]) -> Tensor:
        """Run the blocks over [time, conditions, patches] and project the patch tokens."""
        num_patches, num_blocks = x.shape[1], len(self.blocks)
        prefix, mask = self.embed_prefix(t, entries)
        if mask is not None:
            mask = nn.functional.pad(mask, (0, num_patches), value=True)
        x = torch.cat([prefix.to(x.dtype), x], dim=1)
        skips: list[Tensor] = []
        visits = {
            order: visit_after(prefix.shape[1], self.visit(layer))._replace(mask=mask)
            for layer, order in enumerate(self.layer_orders)
        }
        for layer, block in enumerate(self.blocks):
            skip = skips.pop() if layer >= num_blocks - self.num_skips else None
            x = self.run_block(block, x, skip, visits[self.layer_orders[layer]])
            if layer < self.num_skips:
                skips.append(x)
        return self.projection(self.norm(x[:, -num_patches:]))

    def embed_prefix(self, t: Tensor, entries: list[Entry]) -> tuple[Tensor, Tensor | None]:
        """Return the tokens before the patches, (B, 1 + T, D), and their mask, (B, 1 + T) bool, None if all are valid.

        T is the number of tokens of all conditions, 1 for a class.
        """
        time = Entry(tokens=self.time_embedding(t)[:, None])
        tokens, mask = joined_tokens([time, *map(as_tokens, entries)])
        assert tokens is not None
        return tokens, mask


def as_tokens(entry: Entry) -> Entry:
    """Return the entry with tokens only: its own tokens, or its modulation as one token.

    For dropped samples, the mask keeps a single null token.
    """
    if entry.tokens is None:
        return Entry(tokens=None if entry.modulation is None else entry.modulation[:, None])
    mask = entry.mask
    if entry.dropped is not None:
        # T equal null tokens would get T times the attention weight of one, so only the first is kept.
        first = torch.arange(entry.tokens.shape[1], device=entry.tokens.device) == 0
        mask = (first | ~entry.dropped[:, None]) & (True if mask is None else mask)
    return Entry(tokens=entry.tokens, mask=mask)


class UViTBlock(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)), after merging the skip connection into x if the block has one."""

    def __init__(self, width: int, mixer: MixerOptions, mlp_ratio: float, takes_skip: bool) -> None:
        super().__init__()
        self.merge_skip = nn.Linear(2 * width, width) if takes_skip else None
        self.mixer_norm = nn.LayerNorm(width)
        self.mixer: Mixer = mixer.build(width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_ratio)
        merging = [] if self.merge_skip is None else [self.merge_skip]
        for layer in (*merging, *self.mixer.projections(), self.mlp.hidden, self.mlp.out_proj):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, skip: Tensor | None, visit: Visit) -> Tensor:
        """Run the block on x and skip, both (B, L, D)."""
        if self.merge_skip is not None:
            assert skip is not None
            x = self.merge_skip(torch.cat([x, skip], dim=-1)).to(x.dtype)
        x = x + self.mixer.mix(self.mixer_norm(x), visit)
        return x + self.mlp(self.mlp_norm(x))


def visit_after(num_prefix: int, visit: Visit) -> Visit:
    """Extend a visit by `num_prefix` tokens that are visited first and have positions outside the grid."""
    positions = torch.nn.functional.pad(visit.positions, (0, 0, num_prefix, 0), value=-1.0)
    if visit.order is None:
        return Visit(positions)
    first = torch.arange(num_prefix, dtype=visit.order.dtype, device=positions.device)
    order = torch.cat([first.expand(*visit.order.shape[:-1], -1), visit.order + num_prefix], dim=-1)
    return Visit(positions, order, inverse_order(order).to(order.dtype))


def identity_convolution(num_channels: int) -> nn.Conv2d:
    """Return a 3 x 3 convolution that preserves height and width and is initialised to the identity."""
    layer = nn.Conv2d(num_channels, num_channels, kernel_size=3, padding=1)
    nn.init.dirac_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
