"""Self-attention among tokens.

Axes: B batch, L tokens, D width.
"""

from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from zigma_pl.errors import UserError


class SelfAttention(nn.Module):
    """Let every token attend to all tokens: (B, L, D) -> (B, L, D).

    Args:
        width: D.
        num_heads: attention heads; must divide D.
        bias: whether queries, keys and values have a bias.

    Raises: UserError when the heads do not divide the width.
    """

    def __init__(self, width: int, num_heads: int, bias: bool = True) -> None:
        super().__init__()
        if width % num_heads:
            raise UserError(f"a width of {width} does not split into {num_heads} attention heads: set num_heads")
        self.num_heads = num_heads
        self.to_query_key_value = nn.Linear(width, 3 * width, bias=bias)
        self.out_proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend to the tokens where mask, (B, L) bool, is True; to all of them when it is None."""
        projected = self.to_query_key_value(tokens)
        query, key, value = rearrange(projected, "b l (part h d) -> part b h l d", part=3, h=self.num_heads)
        attention_mask = None if mask is None else mask[:, None, None, :]
        attended = scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        return self.out_proj(rearrange(attended, "b h l d -> b l (h d)"))


def default_num_heads(width: int) -> int:
    """Return as many heads as there are 64 channels, at least one; 16 for 1152, the width of DiT-XL."""
    return 16 if width == 1152 else max(1, width // 64)
