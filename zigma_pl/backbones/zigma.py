"""ZigMa: a diffusion backbone of Mamba layers, each scanning the grid along its own zigzag.

Axes: C channels, H W latent grid, D width, N state.
"""

from zigma_pl.backbones.base import plain_options, resolve_size
from zigma_pl.backbones.mamba import SIZES, MambaBackbone, Size
from zigma_pl.nn.block import Residual
from zigma_pl.nn.embeddings import PositionKind
from zigma_pl.nn.mixer import MambaMixer
from zigma_pl.ops.selective_scan import ScanBackend
from zigma_pl.scan.schedule import ScanConfig


class ZigMa(MambaBackbone):
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
        config = plain_options(locals())
        width, depth = resolve_size(SIZES, size, width, depth)
        mixer_options = (width, state_size, expand, conv_kernel, scan_backend)
        super().__init__(width, config, (MambaMixer(*mixer_options) for _ in range(depth)))
        orders, self.layer_orders = scan.layer_orders(depth, *self.grid)
        self.hold_orders(orders)
