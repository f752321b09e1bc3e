"""Cross-attention to captions of different lengths."""

import pytest
import torch

from zigma_pl.models.layers.cross_attention import CrossAttention, masked_caption

LENGTHS = [1, 5, 11]
MASK = torch.arange(11) < torch.tensor(LENGTHS)[:, None]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float16, 2e-3)])
def test_only_valid_tokens_are_attended_to(dtype, tolerance):
    torch.manual_seed(0)
    attention = CrossAttention(16, num_heads=2, head_dim=4).to(dtype)
    tokens, caption = torch.randn(3, 6, 16, dtype=dtype), torch.randn(3, 11, 16, dtype=dtype)
    attended = attention(tokens, *masked_caption(caption, MASK))
    for index, length in enumerate(LENGTHS):
        alone = attention(tokens[index : index + 1], caption[index : index + 1, :length])
        torch.testing.assert_close(attended[index : index + 1], alone, rtol=0, atol=tolerance)


def test_excluded_tokens_get_no_gradient():
    torch.manual_seed(0)
    caption = torch.randn(3, 11, 16, requires_grad=True)
    attention = CrossAttention(16, num_heads=2, head_dim=4)
    attention(torch.randn(3, 6, 16), *masked_caption(caption, MASK)).square().sum().backward()
    assert torch.equal(caption.grad.abs().sum(-1) > 0, MASK)


@pytest.mark.parametrize("num_tokens", [8, 11, 77])
def test_masked_captions_are_padded_to_a_multiple_of_eight(num_tokens):
    caption, bias = masked_caption(torch.ones(2, num_tokens, 4), torch.ones(2, num_tokens, dtype=torch.bool))
    assert caption.shape[1] == bias.shape[1] == -(-num_tokens // 8) * 8
    assert torch.equal(bias[0] == 0, torch.arange(bias.shape[1]) < num_tokens)


def test_captions_without_a_mask_are_not_changed():
    caption = torch.ones(2, 77, 4)
    same, bias = masked_caption(caption, None)
    assert same is caption
    assert bias is None
