"""Linear attention among all tokens, independent of the visit order.

Axes: B batch, L tokens, D width, E inner width, h heads, d width of a head.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from einops import rearrange
from torch import Tensor, nn

from zigma_pl.core.autocast import without_autocast
from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.models.layers.linear import Linear
from zigma_pl.models.mixers.base import Mixer, MixerOptions, Visit
from zigma_pl.ops.rows import compute_dtype

HEAD_DIM = 32  # default width of a head, as in SANA


class LinearAttentionMixer(Mixer):
    """ReLU linear attention among all tokens (SANA, arXiv:2410.10629, section 2.2): (B, L, D) -> (B, L, D).

    out[i] = sum over j of w[i, j] value[j] / sum over j of w[i, j],  w[i, j] = relu(query[i]) . relu(key[j]).

    Both sums over j are computed once for all tokens, so time and memory are linear in L. They are float32, since sums
    over many tokens lose precision, or overflow, in 16 bits.

    Args:
        width: D.
        num_heads: attention heads; must divide E.
        inner_width: E, the width of queries, keys and values over all heads; None for D.
        bias: whether queries, keys and values have a bias.
        epsilon: added to the sum of the weights, which is 0 for a token without any positive weight.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        inner_width: int | None = None,
        bias: bool = False,
        epsilon: float = 1e-8,
    ) -> None:
        super().__init__()
        inner = inner_width or width
        if inner % num_heads:
            raise UserError(f"num_heads: {num_heads} does not divide the inner width {inner}: set it to a divisor")
        self.num_heads, self.epsilon = num_heads, epsilon
        self.to_query_key_value = Linear(width, 3 * inner, bias=bias)
        self.out_proj = Linear(inner, width)

    def forward(self, tokens: Tensor, visit: Visit) -> Tensor:
        """Attend to all tokens that are valid according to the mask of the visit."""
        projected = self.to_query_key_value(tokens)
        query, key, value = rearrange(projected, "b l (part h d) -> part b h l d", part=3, h=self.num_heads)
        key = key.relu()
        if visit.mask is not None:
            key = key * visit.mask[:, None, :, None]
        with without_autocast(tokens.device):  # products of float32 matrices stay float32
            attended = _attend(query.relu(), key, value, self.epsilon)
        return self.out_proj(rearrange(attended, "b h l d -> b l (h d)"))

    def projections(self) -> Sequence[nn.Linear]:
        """Return the input and output projections."""
        return self.to_query_key_value, self.out_proj


def _attend(query: Tensor, key: Tensor, value: Tensor, epsilon: float) -> Tensor:
    """Return the weighted means, (B, h, L, d), in the dtype of the values."""
    query, key, exact = (rows.to(compute_dtype(value)) for rows in (query, key, value))
    sums = key.mT @ exact  # (B, h, d, d)
    weights = query @ key.sum(-2, keepdim=True).mT  # (B, h, L, 1)
    return (query @ sums / (weights + epsilon)).to(value.dtype)


@dataclass(frozen=True)
class LinearAttention(MixerOptions):
    """ReLU linear attention among all tokens (SANA, arXiv:2410.10629), which ignores the visit order.

    Args:
        num_heads: number of heads; None for heads of 32 channels, or of the largest power of two that divides an inner
            width which 32 does not.
        bias: whether queries, keys and values have a bias.
        inner_width: width of queries, keys and values over all heads, for layers with as many parameters as another
            mixer's; None for the width of the tokens.
    """

    takes_mask = True

    num_heads: int | None = None
    bias: bool = False
    inner_width: int | None = None

    def __post_init__(self) -> None:
        check_whole_numbers("LinearAttention", most=4096, num_heads=self.num_heads)
        check_whole_numbers("LinearAttention", most=2**20, inner_width=self.inner_width)

    @property
    def num_orders(self) -> int:
        """Zero, as attention has no visit order."""
        return 0

    def build(self, width: int) -> LinearAttentionMixer:
        """Build one layer."""
        inner = self.inner_width or width
        num_heads = self.num_heads or inner // math.gcd(inner, HEAD_DIM)
        return LinearAttentionMixer(width, num_heads, self.inner_width, self.bias)
