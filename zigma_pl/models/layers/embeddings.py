"""Embeddings of patches, positions and time.

Axes: B batch, C channels, H W latent grid, L tokens, D width.
"""

import math
from typing import ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from zigma_pl.core.errors import UserError
from zigma_pl.models.layers.linear import Linear

PositionKind = Literal["none", "cosine", "learnable"]


class PatchEmbedding(nn.Module):
    """Cut (B, C, H, W) into patches and project them linearly: (B, L, D), raster order, L = H W / patch_size**2.

    Raises: UserError if patch_size does not divide H and W.
    """

    parameter_roles: ClassVar[dict[str, str]] = {"projection.weight": "projection"}

    def __init__(self, in_channels: int, latent_height: int, latent_width: int, patch_size: int, width: int) -> None:
        super().__init__()
        if latent_height % patch_size or latent_width % patch_size:
            raise UserError(
                f"patch_size: {patch_size} does not divide the {latent_height} x {latent_width} latent grid: change "
                "patch_size or the image size"
            )
        self.patch_size = patch_size
        self.grid = (latent_height // patch_size, latent_width // patch_size)
        self.projection = Linear(in_channels * patch_size**2, width)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Embed x, (B, C, H, W), as tokens (B, L, D)."""
        patches = rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch_size, q=self.patch_size)
        return self.projection(patches)


def unpatchify(tokens: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """Reassemble tokens (B, L, p p C), last axis (patch row, patch column, channel), to (B, C, H, W)."""
    return rearrange(tokens, "b (h w) (p q c) -> b c (h p) (w q)", h=grid[0], p=patch_size, q=patch_size)


def sinusoid(positions: Tensor, frequencies: Tensor) -> Tensor:
    """Return cos then sin of `positions` (...,) at K frequencies (K,): (..., 2 K), float32."""
    angles = positions.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def sinusoid_frequencies(num_frequencies: int, max_period: float = 10_000.0) -> Tensor:
    """Return frequencies max_period**(-i / num_frequencies), i = 0 .. num_frequencies - 1, float32."""
    exponents = torch.arange(num_frequencies, dtype=torch.float32) / num_frequencies
    return torch.exp(-math.log(max_period) * exponents)


class PositionEmbedding(nn.Module):
    """Add position embeddings to tokens: (B, ..., L, D) -> (B, ..., L, D).

    Args:
        kind: "none", "cosine" (fixed) or "learnable".
        grid: rows and columns of the L tokens, in raster order; or the frames of a clip, (F,), with L = F.
        width: D.
    """

    table: Tensor
    parameter_roles: ClassVar[dict[str, str]] = {"table": "embedding"}

    def __init__(self, kind: PositionKind, grid: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "learnable":
            self.table = nn.Parameter(torch.empty(1, math.prod(grid), width).normal_(std=0.02))
        elif kind == "cosine":
            self.register_buffer("table", self.cosine_table(grid, width), persistent=False)

    @staticmethod
    def cosine_table(grid: tuple[int, ...], width: int) -> Tensor:
        """Return (1, L, D) with sinusoids of the row in the first half of the channels, of the column in the second."""
        if width % 4:
            raise UserError(f"position_embedding: 'cosine' needs a width divisible by 4, got {width}: change width")
        axes = torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")
        frequencies = sinusoid_frequencies(width // (2 * len(grid)))
        return torch.cat([sinusoid(axis.flatten(), frequencies) for axis in axes], dim=-1)[None]

    def forward(self, tokens: Tensor) -> Tensor:
        """Add the embedding of each token's position."""
        return tokens if self.kind == "none" else tokens + self.table.to(tokens.dtype)


class TimeEmbedding(nn.Module):
    """Embed t in [0, 1], (B,), as (B, D): sinusoids of 1000 t, then a two-layer MLP with SiLU."""

    frequencies: Tensor

    def __init__(self, width: int, num_features: int = 256) -> None:
        super().__init__()
        # A buffer, computed once on the CPU: equal on all devices, and available to captured CUDA graphs.
        self.register_buffer("frequencies", sinusoid_frequencies(num_features // 2), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(num_features, width), nn.SiLU(), nn.Linear(width, width))
        for layer in (self.mlp[0], self.mlp[2]):
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, t: Tensor) -> Tensor:
        """Embed t, (B,)."""
        weight = self.mlp[0].weight
        assert isinstance(weight, Tensor)
        return self.mlp(sinusoid(1000.0 * t, self.frequencies).to(weight.dtype))
