import functools

import pytest
import torch
from backbones import tiny

from zigma_pl.backbones import UViT

build = functools.partial(tiny.build, UViT)


@pytest.mark.parametrize(
    ("depth", "cut", "reached"),
    [
        (5, 3, {0, 1, 3, 4}),  # the first block of the second half depends on blocks 0 and 1 through a skip
        (5, 4, {0, 4}),  # the last block depends on block 0 only
        (6, 5, {0, 5}),
        (2, 1, {1}),  # no skips
    ],
)
def test_each_skip_joins_the_blocks_nested_like_brackets(depth, cut, reached):
    """Cut the main path before one block, so that gradients reach earlier blocks only through skips."""
    backbone = build(depth=depth)
    if backbone.blocks[cut].merge_skip is None:
        backbone.blocks[cut].register_forward_pre_hook(lambda block, inputs: (inputs[0].detach(), *inputs[1:]))
    else:
        with torch.no_grad():
            backbone.blocks[cut].merge_skip.weight[:, :16] = 0
    backbone(*tiny.draw()).square().sum().backward()
    gradients = [block.mlp.out_proj.weight.grad for block in backbone.blocks]
    assert {layer for layer, gradient in enumerate(gradients) if gradient is not None and gradient.any()} == reached


def test_half_of_the_blocks_take_a_skip():
    assert [block.merge_skip is not None for block in build(depth=7).blocks] == [False] * 4 + [True] * 3


def test_positions_tell_patches_apart():
    (x, t), same = tiny.draw(), torch.ones(3, 2, 4, 6)
    for positions, differ in (("learnable", True), ("none", False)):
        backbone = build(position_embedding=positions, final_convolution=False)
        patches = backbone(same, t).unfold(2, 2, 2).unfold(3, 2, 2).flatten(2, 3)
        assert torch.allclose(patches, patches[:, :, :1].expand_as(patches), atol=1e-5) != differ
    assert not torch.allclose(backbone(x, t), backbone(same, t))


def test_final_convolution_mixes_across_patch_borders():
    backbone, (x, t) = build(), tiny.draw()
    with torch.no_grad():
        backbone.final_convolution.weight.zero_()
        backbone.final_convolution.weight[:, :, 1, 2] = torch.eye(2)
        backbone.final_convolution.bias.zero_()
        plain = super(UViT, backbone).forward(x, t)
        shifted = backbone(x, t)
    torch.testing.assert_close(shifted[..., :-1], plain[..., 1:])


def test_prediction_starts_at_zero_and_the_convolution_as_the_identity():
    """With a convolution that starts at zero, no other weight would get a gradient at first."""
    fresh, (x, t) = UViT(2, 4, 6, patch_size=2, width=16, depth=3), tiny.draw()
    prediction = fresh(x, t)
    assert not prediction.any()
    prediction.sum().backward()
    assert fresh.projection.weight.grad.any()
    torch.testing.assert_close(fresh.final_convolution(x), x)


def test_size_b_is_the_papers_mid_size_with_its_perceptron():
    with tiny.without_values():
        backbone = UViT(4, 32, 32, patch_size=2, size="B", num_classes=1000, mlp_ratio=4.0)
    assert backbone.num_parameters() / 1e6 == pytest.approx(131, rel=0.01)
