"""Self-attention among all tokens, independent of the visit order.

Axes: B batch, L tokens, D width, E inner width, h heads, d = E / h width of a head, A axes of the grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.models.layers.linear import Linear
from zigma_pl.models.layers.rms_norm import RMSNorm
from zigma_pl.models.mixers.base import Mixer, MixerOptions, Visit

ROTARY_PERIOD = 100.0  # period of the slowest pair of channels in grid positions, divided by 2 pi


class SelfAttentionMixer(Mixer):
    """Self-attention among all tokens: (B, L, D) -> (B, L, D).

    Args:
        width: D.
        num_heads: attention heads; must divide E.
        bias: whether queries, keys and values have a bias.
        qk_norm: normalise queries and keys of each head by their root mean square (arXiv:2302.05442, section 2).
        rotary: rotate queries and keys by the position of their token, with separate channels for each axis of the
            grid (arXiv:2104.09864).
        inner_width: E, the width of queries, keys and values over all heads; None for D.

    Raises: UserError if num_heads does not divide E, or if the width of a head is odd with rotary positions.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        bias: bool = True,
        qk_norm: bool = False,
        rotary: bool = False,
        inner_width: int | None = None,
    ) -> None:
        super().__init__()
        inner = inner_width or width
        if inner % num_heads:
            raise UserError(f"num_heads: {num_heads} does not divide the inner width {inner}: set it to a divisor")
        if rotary and inner // num_heads % 2:
            raise UserError(f"rotary: needs an even width of heads, not {inner // num_heads}: change num_heads")
        self.num_heads = num_heads
        self.to_query_key_value = Linear(width, 3 * inner, bias=bias)
        self.out_proj = Linear(inner, width)
        self.query_norm, self.key_norm = (
            RMSNorm(inner // num_heads, eps=1e-6) if qk_norm else nn.Identity() for _ in range(2)
        )
        self.rotary = rotary

    def forward(self, tokens: Tensor, visit: Visit) -> Tensor:
        """Attend to all tokens that are valid according to the mask of the visit."""
        projected = self.to_query_key_value(tokens)
        query, key, value = rearrange(projected, "b l (part h d) -> part b l h d", part=3, h=self.num_heads)
        query, key = self.query_norm(query), self.key_norm(key)
        query, key, value = (heads.transpose(1, 2) for heads in (query, key, value))  # (B, h, L, d)
        if self.rotary:
            angles = rotary_angles(visit.row_positions(), query.shape[-1])
            query, key = rotate(query, angles), rotate(key, angles)
        mask = None if visit.mask is None else visit.mask[:, None, None, :]
        attended = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out_proj(rearrange(attended, "b h l d -> b l (h d)"))

    def projections(self) -> Sequence[nn.Linear]:
        """Return the input and output projections."""
        return self.to_query_key_value, self.out_proj


def rotary_angles(positions: Tensor, head_dim: int) -> Tensor:
    """Return the angles of the d / 2 pairs of channels at positions (..., A): (..., d / 2), float32.

    The pairs are divided evenly among the axes of the grid, the remainder going to the first axes. Frequencies decrease
    geometrically from 1 to about 1 / ROTARY_PERIOD.
    """
    num_pairs, num_axes = head_dim // 2, positions.shape[-1]
    angles = []
    for axis in range(num_axes):
        num_own = num_pairs // num_axes + int(axis < num_pairs % num_axes)
        exponents = torch.arange(num_own, dtype=torch.float32, device=positions.device) / max(num_own, 1)
        angles.append(positions[..., axis : axis + 1].float() * ROTARY_PERIOD**-exponents)
    return torch.cat(angles, dim=-1)


def rotate(heads: Tensor, angles: Tensor) -> Tensor:
    """Rotate channels i and i + d / 2 of heads (B, h, L, d) by the i-th of the angles, (L, d / 2) or (B, L, d / 2).

    Computes in float32, as rounded angles would distort whole dot products, and rounds to the type of the heads.
    """
    cosine, sine = (values.unsqueeze(-3) for values in (angles.cos(), angles.sin()))
    first, second = heads.chunk(2, dim=-1)
    rotated = [first * cosine - second * sine, second * cosine + first * sine]
    return torch.cat([half.to(heads.dtype) for half in rotated], dim=-1)


def default_num_heads(width: int) -> int:
    """Return the number of heads with 64 channels each, at least one; 16 for 1152, the width of DiT-XL."""
    return 16 if width == 1152 else max(1, width // 64)


@dataclass(frozen=True)
class SelfAttention(MixerOptions):
    """Self-attention among all tokens, which ignores the visit order.

    Args:
        num_heads: number of heads; None for 16 at width 1152, otherwise for heads with 64 channels.
        bias: whether queries, keys and values have a bias.
        qk_norm: normalise queries and keys of each head, for stable training.
        rotary: rotate queries and keys by the row and column (and frame) of their token.
        inner_width: width of queries, keys and values over all heads, for layers with as many parameters as another
            mixer's; None for the width of the tokens.
    """

    takes_mask = True

    num_heads: int | None = None
    bias: bool = True
    qk_norm: bool = True
    rotary: bool = False
    inner_width: int | None = None

    def __post_init__(self) -> None:
        check_whole_numbers("SelfAttention", most=4096, num_heads=self.num_heads)
        check_whole_numbers("SelfAttention", most=2**20, inner_width=self.inner_width)

    @property
    def num_orders(self) -> int:
        """Zero, as attention has no visit order."""
        return 0

    def build(self, width: int) -> SelfAttentionMixer:
        """Build one layer."""
        num_heads = self.num_heads or default_num_heads(self.inner_width or width)
        return SelfAttentionMixer(width, num_heads, self.bias, self.qk_norm, self.rotary, self.inner_width)
