import functools

import pytest
import torch
from backbones import tiny

from zigma_pl.backbones import DiT
from zigma_pl.core.errors import UserError
from zigma_pl.mixers import SelfAttention, Visit
from zigma_pl.models.backbones.dit import DiTBlock
from zigma_pl.models.block import BlockConditions
from zigma_pl.models.layers.cross_attention import CrossAttention
from zigma_pl.models.layers.embeddings import unpatchify

build = functools.partial(tiny.build, DiT)


def permute_patches(x, permutation):
    patches = x.reshape(3, 2, 2, 2, 3, 2).permute(0, 2, 4, 3, 5, 1).reshape(3, 6, 8)
    return unpatchify(patches[:, permutation], (2, 3), 2)


@pytest.mark.parametrize("kind", tiny.CONDITIONS)
def test_without_positions_it_follows_a_permutation_of_the_patches(kind):
    options, conditions = tiny.CONDITIONS[kind]
    (x, t), permutation = tiny.draw(), torch.tensor([4, 2, 0, 5, 1, 3])
    for positions, follows in (("none", True), ("cosine", False)):
        backbone = build(position_embedding=positions, **options)
        found = backbone(permute_patches(x, permutation), t, conditions)
        assert torch.allclose(found, permute_patches(backbone(x, t, conditions), permutation), atol=1e-4) == follows


def test_block_is_three_gated_branches_and_starts_as_the_identity():
    torch.manual_seed(0)
    block = DiTBlock(8, SelfAttention(2, qk_norm=False), 4.0, CrossAttention(8, 2, 4)).double()
    visit = Visit(torch.zeros(5, 2))
    x, conditioning, caption = (torch.randn(2, *shape, 8, dtype=torch.float64) for shape in ((5,), (), (3,)))
    conditions = BlockConditions(conditioning, caption)
    assert torch.equal(block(x, conditions, visit), x)
    torch.nn.init.normal_(block.modulation[1].weight)
    shifts = torch.nn.functional.silu(conditioning) @ block.modulation[1].weight.T
    shifts = shifts.reshape(2, 9, 1, 8).unbind(1)  # shift, scale and gate of attention, MLP, cross-attention
    expected = x
    for index, branch in (
        (0, lambda tokens: block.mixer(tokens, visit)),
        (6, lambda tokens: block.cross_attention(tokens, caption)),
        (3, block.mlp),
    ):
        normalised = torch.nn.functional.layer_norm(expected, (8,), eps=1e-6)
        modulated = normalised * (1 + shifts[index + 1]) + shifts[index]
        expected = expected + shifts[index + 2] * branch(modulated)
    torch.testing.assert_close(block(x, conditions, visit), expected)


def test_sizes_are_the_papers_with_its_perceptron():
    # 33, 130, 458 and 675 million at patch 2, of which the 1000 classes (and in the paper twice the output) are a part.
    for size, heads, expected in [("S", 6, 33), ("B", 12, 130), ("L", 16, 458), ("XL", 16, 675)]:
        with tiny.without_values():
            backbone = DiT(4, 32, 32, patch_size=2, size=size, num_classes=1000, mlp_ratio=4.0)
        assert backbone.num_parameters() / 1e6 == pytest.approx(expected, rel=0.01)
        assert backbone.blocks[0].mixer.num_heads == heads


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match=r"num_heads: 3 .* width 16"):
        build(mixers=SelfAttention(num_heads=3))
