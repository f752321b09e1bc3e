"""Vision Mamba: every block scans the grid in raster order and in reverse, the bidirectional baseline of the paper.

Axes: F frames (videos only), C channels, H W latent grid, D width, N state.
"""

import math

import numpy as np

from zigma_pl.backbones.base import plain_options
from zigma_pl.backbones.mamba import MambaBackbone, Size, resolve_parallel_size
from zigma_pl.nn.block import Residual
from zigma_pl.nn.embeddings import PositionKind
from zigma_pl.nn.mixer import ParallelMixer
from zigma_pl.ops.selective_scan import ScanBackend

NUM_DIRECTIONS = 2


class VisionMamba(MambaBackbone):
    """ZigMa's blocks with bidirectional mixers (Vision Mamba, arXiv:2401.09417): raster order and its reverse.

    Of a video, raster order goes through all frames.

    The projections in and out of a mixer are shared; both directions have their own convolution and scan, initialised
    alike, and the outputs are summed.

    Args:
        in_channels: C, channels of the latents (or pixels). On the command line this, height, width, frames, classes
            and caption width are those of the data module where they are not given.
        latent_height: H of the latents.
        latent_width: W of the latents.
        patch_size: side of the square patch that makes one token; H and W must be divisible by it.
        latent_frames: F, frames of a video's latents, each cut into patches by itself; None for pictures.
        size: named preset with the width of ZigMa's: S 384, B 768, L 1024, XL 1152, and as many layers as make up
            ZigMa's parameters: 23, 23, 46 and 54.
        width: D; overrides the preset.
        depth: number of layers; overrides the preset.
        state_size: states for each inner channel of a scan, N.
        expand: inner width over D.
        conv_kernel: taps of the causal convolution.
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
        width, depth = resolve_parallel_size(size, width, depth, NUM_DIRECTIONS, config)
        mixer_options = (width, NUM_DIRECTIONS, state_size, expand, conv_kernel, scan_backend)
        super().__init__(width, config, (ParallelMixer(*mixer_options) for _ in range(depth)))
        raster = np.arange(math.prod(self.grid) * (latent_frames or 1))  # through a clip frame after frame
        self.hold_orders([np.stack([raster, raster[::-1]])])
