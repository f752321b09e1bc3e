"""Cross-attention from image tokens to caption tokens.

Axes: B batch, L tokens, T caption tokens, D width.
"""

from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from zigma_pl.models.layers.shapes import check_shape


class CrossAttention(nn.Module):
    """Attend from tokens (B, L, D) to caption tokens (B, T, D): (B, L, D).

    Args:
        width: D.
        num_heads: attention heads.
        head_dim: width of a head; the inner width num_heads * head_dim need not equal D.
    """

    def __init__(self, width: int, num_heads: int = 8, head_dim: int = 64) -> None:
        super().__init__()
        inner = num_heads * head_dim
        self.num_heads = num_heads
        self.to_query = nn.Linear(width, inner, bias=False)
        self.to_key = nn.Linear(width, inner, bias=False)
        self.to_value = nn.Linear(width, inner, bias=False)
        self.out_proj = nn.Linear(inner, width)

    def forward(self, tokens: Tensor, caption: Tensor, caption_mask: Tensor | None = None) -> Tensor:
        """Attend to the caption tokens where caption_mask, (B, T) bool, is True, or to all tokens if it is None.

        Raises: UserError for an argument of another shape.
        """
        width = self.to_query.in_features
        check_shape("CrossAttention", "tokens", tokens, "(B, L, D)", None, None, width)
        check_shape("CrossAttention", "caption", caption, "(B, T, D)", len(tokens), None, width)
        if caption_mask is not None:
            check_shape("CrossAttention", "caption_mask", caption_mask, "(B, T)", *caption.shape[:2])
        query, key, value = (
            rearrange(projected, "b l (h d) -> b h l d", h=self.num_heads)
            for projected in (self.to_query(tokens), self.to_key(caption), self.to_value(caption))
        )
        mask = None if caption_mask is None else caption_mask[:, None, None, :]
        attended = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out_proj(rearrange(attended, "b h l d -> b l (h d)"))
