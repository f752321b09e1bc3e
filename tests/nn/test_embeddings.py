import math

import pytest
import torch

from zigma_pl.core.errors import UserError
from zigma_pl.models.layers.embeddings import (
    PatchEmbedding,
    PositionEmbedding,
    sinusoid,
    sinusoid_frequencies,
    unpatchify,
)


def test_patches_are_cut_as_a_strided_convolution_does():
    embedding = PatchEmbedding(3, 4, 6, patch_size=2, width=5).double()
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    kernel = embedding.projection.weight.reshape(5, 3, 2, 2)
    expected = torch.nn.functional.conv2d(x, kernel, embedding.projection.bias, stride=2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embedding(x), expected)
    assert embedding.grid == (2, 3)


def test_unpatchify_puts_row_column_channel_back():
    x = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    tokens = x.reshape(2, 3, 2, 2, 3, 2).permute(0, 2, 4, 3, 5, 1).reshape(2, 6, 12)
    assert torch.equal(unpatchify(tokens, (2, 3), 2), x)


def test_patch_must_divide_the_grid():
    with pytest.raises(UserError, match=r"patch_size: 4 .* 4 x 6"):
        PatchEmbedding(3, 4, 6, patch_size=4, width=8)


def test_sinusoid_is_cosine_first_from_frequency_one():
    features = sinusoid(torch.tensor([2.0]), sinusoid_frequencies(4))[0]
    assert features[0] == pytest.approx(math.cos(2.0), abs=1e-6)
    assert features[4] == pytest.approx(math.sin(2.0), abs=1e-6)
    assert features[7] == pytest.approx(math.sin(2.0 * 10_000 ** (-3 / 4)), abs=1e-6)


def test_cosine_positions_tell_rows_from_columns():
    embedding = PositionEmbedding("cosine", (3, 5), 16)
    table = embedding.table[0].reshape(3, 5, 16)
    assert (table[1, :, :8] == table[1, :1, :8]).all()
    assert (table[:, 2, 8:] == table[:1, 2, 8:]).all()
    assert len(table.reshape(15, 16).unique(dim=0)) == 15
    assert not list(embedding.parameters())
    assert not embedding.state_dict()


def test_cosine_needs_a_width_divisible_by_four():
    with pytest.raises(UserError, match="divisible by 4"):
        PositionEmbedding("cosine", (2, 2), 6)


def test_learnable_positions_get_gradients_and_none_has_none():
    learnable = PositionEmbedding("learnable", (2, 2), 8)
    learnable(torch.zeros(1, 4, 8)).sum().backward()
    assert (learnable.table.grad == 1).all()
    tokens = torch.randn(1, 4, 8)
    assert PositionEmbedding("none", (2, 2), 8)(tokens) is tokens
