"""Cross-attention from image tokens to caption tokens.

Axes: B batch, L tokens, T caption tokens, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from zigma_pl.models.layers.linear import Linear
from zigma_pl.models.layers.shapes import check_shape
from zigma_pl.ops.short_attention import attend

EXCLUDED = -30_000.0  # a weight of exp(-30,000) is 0; within the range of float16
BIAS_ALIGNMENT = 8  # caption tokens; PyTorch's fastest kernel needs aligned rows of the bias


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
        self.out_proj = Linear(inner, width)

    def forward(self, tokens: Tensor, caption: Tensor, bias: Tensor | None = None) -> Tensor:
        """Attend to the caption tokens, with a bias (B, T) that is added to the scaled products; see `masked_caption`.

        Raises: UserError for an argument of another shape.
        """
        width = self.to_query.in_features
        check_shape("CrossAttention", "tokens", tokens, "(B, L, D)", None, None, width)
        check_shape("CrossAttention", "caption", caption, "(B, T, D)", len(tokens), None, width)
        if bias is not None:
            check_shape("CrossAttention", "bias", bias, "(B, T)", *caption.shape[:2])
        query, key, value = (
            projected.unflatten(-1, (self.num_heads, -1))
            for projected in (self.to_query(tokens), self.to_key(caption), self.to_value(caption))
        )
        return self.out_proj(attend(query, key, value, bias).flatten(2))


def masked_caption(caption: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return caption tokens (B, T, D) and a bias for `CrossAttention` that excludes the tokens whose mask is False.

    Attention with a bias is faster than with a mask of booleans, and faster still if T is a multiple of 8, so the
    caption is padded with excluded tokens. Without a mask, which is fastest, nothing is padded.

    Args:
        caption: (B, T, D).
        mask: (B, T) bool, None if all tokens are valid.
    """
    if mask is None:
        return caption, None
    num_padding = -caption.shape[1] % BIAS_ALIGNMENT
    caption, mask = functional.pad(caption, (0, 0, 0, num_padding)), functional.pad(mask, (0, num_padding))
    return caption, torch.where(mask, 0.0, EXCLUDED)
