"""Parallel Mamba: every block scans the grid along all of the orders, the costly alternative to ZigMa's turns.

Axes: F frames (videos only), C channels, H W latent grid, D width, N state.
"""

import numpy as np

from zigma_pl.backbones.base import plain_options
from zigma_pl.backbones.mamba import MambaBackbone, Size, resolve_parallel_size
from zigma_pl.errors import UserError
from zigma_pl.nn.block import Residual
from zigma_pl.nn.embeddings import PositionKind
from zigma_pl.nn.mixer import ParallelMixer
from zigma_pl.ops.selective_scan import ScanBackend
from zigma_pl.scan.schedule import ScanConfig


class ParallelMamba(MambaBackbone):
    """Blocks with k scan directions in parallel (ZigMa, arXiv:2403.13802, Fig. 4 c and d), k = scan.num_orders.

    The projections in and out of a mixer are shared; each direction has its own convolution and scan, and the outputs
    are summed, so that a layer's time and memory grow with k. With k = 1 it is ZigMa with one order. Videos are scanned
    along 3D orders only.

    Args:
        in_channels: C, channels of the latents (or pixels). On the command line this, height, width, frames, classes
            and caption width are those of the data module where they are not given.
        latent_height: H of the latents.
        latent_width: W of the latents.
        patch_size: side of the square patch that makes one token; H and W must be divisible by it.
        latent_frames: F, frames of a video's latents, each cut into patches by itself; None for pictures.
        size: named preset with the width of ZigMa's: S 384, B 768, L 1024, XL 1152, and as many layers as make up
            ZigMa's parameters; B with eight directions has 19 layers in place of 24.
        width: D; overrides the preset.
        depth: number of layers; overrides the preset.
        state_size: states for each inner channel of a scan, N.
        expand: inner width over D.
        conv_kernel: taps of the causal convolution.
        scan: which family of orders, and how many of them every layer scans.
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
        in_channels: int | None = None,
        latent_height: int | None = None,
        latent_width: int | None = None,
        patch_size: int = 1,
        latent_frames: int | None = None,
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
        if latent_frames is not None and scan.video == "factorized":
            raise UserError("scan.video: a ParallelMamba has no factorized scan of videos; choose 3d, or ZigMa")
        width, depth = resolve_parallel_size(size, width, depth, scan.num_orders, config)
        mixer_options = (width, scan.num_orders, state_size, expand, conv_kernel, scan_backend)
        super().__init__(width, config, (ParallelMixer(*mixer_options) for _ in range(depth)))
        self.hold_orders([np.stack(scan.orders(*self.grid, latent_frames))])
