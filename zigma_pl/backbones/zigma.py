"""ZigMa: a diffusion backbone of Mamba layers, each scanning the grid along its own zigzag.

Axes: F frames (videos only), C channels, H W latent grid, D width, N state.
"""

from typing import Any

from zigma_pl.backbones.base import plain_options, resolve_size
from zigma_pl.backbones.mamba import SIZES, MambaBackbone, Size
from zigma_pl.nn.block import Residual
from zigma_pl.nn.embeddings import PositionKind
from zigma_pl.nn.factorized import FactorizedMixer
from zigma_pl.nn.mixer import MambaMixer
from zigma_pl.ops.mamba_mixer import ActivationMemory
from zigma_pl.ops.selective_scan import ScanBackend
from zigma_pl.scan.schedule import Axis, ScanConfig


class ZigMa(MambaBackbone):
    """Zigzag Mamba (arXiv:2403.13802): layer i scans the tokens along order Omega_i = S_{i mod k}.

    Args:
        in_channels: C, channels of the latents (or pixels). On the command line this, height, width, frames, classes
            and caption width are those of the data module where they are not given.
        latent_height: H of the latents.
        latent_width: W of the latents.
        patch_size: side of the square patch that makes one token; H and W must be divisible by it.
        latent_frames: F, frames of a video's latents, each cut into patches by itself; None for pictures.
        size: named preset of (width, depth): S (384, 24), B (768, 24), L (1024, 48), XL (1152, 56).
        width: D; overrides the preset.
        depth: number of layers; overrides the preset.
        state_size: states for each inner channel of the scan, N.
        expand: inner width over D.
        conv_kernel: taps of the causal convolution.
        scan: which family of orders, how many of them the layers cycle through, and how they go on over frames.
        position_embedding: none, cosine (fixed) or learnable.
        num_classes: classes to condition on; None for none.
        caption_dim: width of the caption features to condition on; None for none.
        null_condition: learn an entry for "no condition"; guidance and condition dropout need it.
        attention_heads: heads of the cross-attention to captions.
        attention_head_dim: width of each head.
        residual: "prenorm", or "legacy", the form of the released ZigMa checkpoints.
        gradient_checkpointing: recompute each block in the backward pass instead of keeping its activations.
        scan_backend: which implementation runs the scan; "auto" chooses by device.
        activation_memory: what layers keep for the backward pass on a GPU: "lean" little, the rest is recomputed;
            "fast" twice as much, for steps that take a tenth less time.
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
        activation_memory: ActivationMemory = "lean",
    ) -> None:
        config = plain_options(locals())
        width, depth = resolve_size(SIZES, size, width, depth)
        mixer_options = (width, state_size, expand, conv_kernel, scan_backend, activation_memory)
        axes = (scan.layer_axis(layer, latent_frames) for layer in range(depth))
        super().__init__(width, config, (make_mixer(mixer_options, axis, latent_frames) for axis in axes))
        orders, self.layer_orders = scan.layer_orders(depth, *self.grid, latent_frames)
        self.hold_orders(orders)


def make_mixer(options: tuple[Any, ...], axis: Axis | None, num_frames: int | None) -> MambaMixer:
    """Build a layer's mixer: over all tokens at once, or along an axis of a clip of `num_frames` frames."""
    if axis is None:
        return MambaMixer(*options)
    assert num_frames is not None
    return FactorizedMixer(*options, axis=axis, num_frames=num_frames)
