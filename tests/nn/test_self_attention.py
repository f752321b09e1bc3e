import torch

from zigma_pl.nn.mlp import MLP
from zigma_pl.nn.self_attention import SelfAttention


def test_attention_is_softmax_of_scaled_products_within_each_head():
    torch.manual_seed(0)
    attention = SelfAttention(12, num_heads=3).double()
    tokens = torch.randn(2, 5, 12, dtype=torch.float64)
    query, key, value = attention.to_query_key_value(tokens).chunk(3, dim=-1)
    heads = []
    for part in (slice(0, 4), slice(4, 8), slice(8, 12)):
        scores = query[..., part] @ key[..., part].transpose(1, 2) / 2.0
        heads.append(scores.softmax(-1) @ value[..., part])
    torch.testing.assert_close(attention(tokens), attention.out_proj(torch.cat(heads, dim=-1)))


def test_masked_tokens_are_not_attended_to():
    torch.manual_seed(0)
    attention, tokens = SelfAttention(8, num_heads=2), torch.randn(2, 5, 8)
    mask = torch.tensor([True, True, False, True, False]).repeat(2, 1)
    torch.testing.assert_close(attention(tokens, mask)[:, mask[0]], attention(tokens[:, mask[0]]))


def test_perceptron_is_the_tanh_gelu_between_two_linear_layers():
    torch.manual_seed(0)
    mlp, x = MLP(8, ratio=4.5).double(), torch.randn(2, 3, 8, dtype=torch.float64)
    hidden = mlp.hidden(x)
    assert hidden.shape[-1] == 36
    gelu = 0.5 * hidden * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)))
    torch.testing.assert_close(mlp(x), mlp.out_proj(gelu))
