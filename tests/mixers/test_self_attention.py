import pytest
import torch

from zigma_pl.core.errors import UserError
from zigma_pl.mixers import SelfAttention, Visit
from zigma_pl.models.mixers.self_attention import SelfAttentionMixer, rotary_angles, rotate


def grid_positions(height, width):
    return torch.cartesian_prod(torch.arange(height), torch.arange(width)).double()


@pytest.mark.parametrize("width", [12, 7])
def test_attention_is_softmax_of_scaled_products_within_each_head(width):
    torch.manual_seed(0)
    attention = SelfAttentionMixer(width, num_heads=3, inner_width=None if width == 12 else 12).double()
    tokens = torch.randn(2, 5, width, dtype=torch.float64)
    query, key, value = attention.to_query_key_value(tokens).chunk(3, dim=-1)
    heads = []
    for part in (slice(0, 4), slice(4, 8), slice(8, 12)):
        scores = query[..., part] @ key[..., part].transpose(1, 2) / 2.0
        heads.append(scores.softmax(-1) @ value[..., part])
    visit = Visit(torch.zeros(5, 2))
    torch.testing.assert_close(attention(tokens, visit), attention.out_proj(torch.cat(heads, dim=-1)))


def test_masked_tokens_are_not_attended_to():
    torch.manual_seed(0)
    attention, tokens, visit = SelfAttentionMixer(8, num_heads=2), torch.randn(2, 5, 8), Visit(torch.zeros(5, 2))
    mask = torch.tensor([True, True, False, True, False]).repeat(2, 1)
    masked = attention(tokens, visit._replace(mask=mask))
    torch.testing.assert_close(masked[:, mask[0]], attention(tokens[:, mask[0]], visit))


def test_queries_and_keys_are_normalised_within_each_head():
    """The scale of queries and keys does not matter, only that of the learned weights."""
    torch.manual_seed(0)
    attention, tokens = SelfAttention(num_heads=2, bias=False).build(8), torch.randn(1, 5, 8)
    visit = Visit(torch.zeros(5, 2))
    before = attention(tokens, visit)
    with torch.no_grad():
        attention.to_query_key_value.weight[:16] *= 100.0
        torch.testing.assert_close(attention(tokens, visit), before, rtol=1e-4, atol=1e-5)
        attention.query_norm.weight *= 3.0
    assert not torch.allclose(attention(tokens, visit), before)


def test_normalised_attention_by_hand():
    """Queries and keys of each head are divided by their own root mean square, and multiplied by learned weights."""
    torch.manual_seed(0)
    attention = SelfAttentionMixer(12, num_heads=3, qk_norm=True).double()
    for norm in (attention.query_norm, attention.key_norm):
        torch.nn.init.normal_(norm.weight)
    tokens = torch.randn(2, 5, 12, dtype=torch.float64)
    query, key, value = attention.to_query_key_value(tokens).unflatten(-1, (3, 3, 4)).unbind(2)  # (2, 5, heads, 4)
    query, key = (part / (part.square().mean(-1, keepdim=True) + 1e-6).sqrt() for part in (query, key))
    query, key = query * attention.query_norm.weight, key * attention.key_norm.weight
    weights = (torch.einsum("bihd,bjhd->bhij", query, key) / 2.0).softmax(-1)
    expected = torch.einsum("bhij,bjhd->bihd", weights, value).flatten(2)
    torch.testing.assert_close(attention(tokens, Visit(torch.zeros(5, 2))), attention.out_proj(expected))


def test_rotated_products_depend_on_the_distance_in_the_grid_alone():
    positions = grid_positions(4, 5)
    query, key = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64).expand(-1, -1, -1, 20, -1)
    angles = rotary_angles(positions, 8).double()
    products = (rotate(query, angles) @ rotate(key, angles).transpose(-1, -2))[0, 0]
    by_distance = {}
    for i, j in torch.cartesian_prod(torch.arange(20), torch.arange(20)).tolist():
        by_distance.setdefault(tuple((positions[i] - positions[j]).tolist()), []).append(products[i, j].item())
    assert all(max(same) - min(same) < 1e-5 for same in by_distance.values())
    assert len({round(same[0], 4) for same in by_distance.values()}) == len(by_distance)  # rows are not columns


def test_axes_share_the_pairs_of_channels():
    angles = rotary_angles(torch.tensor([[1.0, 2.0, 3.0]]), 14)
    assert angles.shape == (1, 7)
    torch.testing.assert_close(angles[0, [0, 3, 5]], torch.tensor([1.0, 2.0, 3.0]))  # 3, 2 and 2 pairs, fastest first


def test_rotary_positions_tell_tokens_apart():
    torch.manual_seed(0)
    attention, tokens = SelfAttention(rotary=True).build(16), torch.randn(1, 6, 16)
    changed = attention(tokens, Visit(grid_positions(2, 3))) - attention(tokens, Visit(grid_positions(3, 2)))
    assert changed.abs().max() > 1e-4


@pytest.mark.parametrize(
    "options", [{"num_heads": 3}, {"num_heads": 16, "rotary": True}, {"num_heads": 4, "inner_width": 18}]
)
def test_heads_that_do_not_fit_the_width_are_refused(options):
    with pytest.raises(UserError, match="num_heads"):
        SelfAttention(**options).build(16)
