import pytest
import torch

from zigma_pl.core.errors import UserError
from zigma_pl.mixers import LinearAttention, Visit

VISIT = Visit(torch.zeros(9, 2))


def quadratic(attention, tokens, mask=None):
    """The weights of all pairs of tokens, normalised over the keys."""
    query, key, value = attention.to_query_key_value(tokens).chunk(3, dim=-1)
    mixed = []
    for head in range(attention.num_heads):
        width = value.shape[-1] // attention.num_heads
        part = slice(head * width, (head + 1) * width)
        weights = query[..., part].clamp(min=0) @ key[..., part].clamp(min=0).mT
        if mask is not None:
            weights = weights * mask[:, None]
        mixed.append(weights / (weights.sum(-1, keepdim=True) + attention.epsilon) @ value[..., part])
    return attention.out_proj(torch.cat(mixed, dim=-1))


@pytest.mark.parametrize(
    "options", [{}, {"num_heads": 3}, {"inner_width": 20, "num_heads": 5}, {"bias": True}], ids=str
)
def test_attention_is_the_normalised_sum_over_all_pairs(options):
    torch.manual_seed(0)
    attention = LinearAttention(**options).build(12).double()
    tokens = torch.randn(2, 9, 12, dtype=torch.float64)
    torch.testing.assert_close(attention(tokens, VISIT), quadratic(attention, tokens))
    mask = torch.rand(2, 9) > 0.4
    masked = attention(tokens, VISIT._replace(mask=mask))
    torch.testing.assert_close(masked, quadratic(attention, tokens, mask))


def test_gradients_are_those_of_the_quadratic_form():
    torch.manual_seed(0)
    attention, tokens = LinearAttention(num_heads=2).build(8).double(), torch.randn(2, 9, 8, dtype=torch.float64)
    gradients = []
    for output in (attention(tokens, VISIT), quadratic(attention, tokens)):
        gradients.append(torch.autograd.grad(output.square().sum(), list(attention.parameters())))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_token_without_positive_weights_gets_zero():
    attention = LinearAttention(num_heads=1).build(4)
    with torch.no_grad():
        attention.to_query_key_value.weight[:4] = 0.0
        attention.out_proj.bias.zero_()
    assert torch.equal(attention(torch.randn(1, 9, 4), VISIT), torch.zeros(1, 9, 4))


def test_sums_over_many_tokens_do_not_overflow_in_float16():
    torch.manual_seed(0)
    attention = LinearAttention(num_heads=1).build(8).half()
    tokens = 4 * torch.rand(1, 1, 8).half()
    with torch.no_grad():
        mixed = attention(tokens.expand(1, 2**16, 8), Visit(torch.zeros(2**16, 2)))
        torch.testing.assert_close(mixed[:, :1], attention(tokens, VISIT), rtol=1e-2, atol=1e-2)
    assert mixed.dtype == torch.float16


def test_heads_have_32_channels_where_they_fit():
    widths = {64: 2, 416: 13, 48: 3, 7: 7}
    assert {width: LinearAttention().build(width).num_heads for width in widths} == widths
    assert LinearAttention(inner_width=96).build(64).num_heads == 3


@pytest.mark.parametrize("options", [{"num_heads": 5}, {"num_heads": 0}, {"inner_width": 0}], ids=str)
def test_heads_that_do_not_fit_are_refused(options):
    with pytest.raises(UserError, match=next(iter(options))):
        LinearAttention(**options).build(64)
