"""Kind: public modules called with tensors of the wrong shape raise a one-line error."""

from functools import partial

import pytest
import torch

from zigma_pl.backbones import DiT, ParallelMamba, UViT, VisionMamba, ZigMa
from zigma_pl.core.batch import Condition
from zigma_pl.core.errors import UserError
from zigma_pl.mixers import Visit
from zigma_pl.models.layers.cross_attention import CrossAttention
from zigma_pl.models.mixers.mamba import MambaMixer
from zigma_pl.models.mixers.parallel import ParallelMixer
from zigma_pl.models.zigzag_mamba import ZigzagMamba

ONES = torch.ones
MIXER, PARALLEL, ATTENTION = MambaMixer(8), ParallelMixer(8, 2), CrossAttention(8, 1, 8)
ORDERS = torch.arange(4).int().expand(2, 4)
POSITIONS = torch.zeros(4, 2)


def refused(module, *arguments):
    with pytest.raises(UserError, match=r"must be|shape|expected") as caught:
        module(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("module", [ZigzagMamba(8), partial(MIXER, visit=Visit(POSITIONS))], ids=["layer", "mixer"])
@pytest.mark.parametrize("shape", [(2, 4, 7), (2, 4, 9), (4, 8), (2, 2, 2, 8), (8,), ()])
def test_tokens_of_another_shape(module, shape):
    refused(module, ONES(shape))
    module(ONES(2, 4, 8))


@pytest.mark.parametrize(
    "arguments",
    [(ONES(2, 4, 7), ORDERS), (ONES(2, 4, 8), ORDERS[:1]), (ONES(2, 4, 8), ORDERS[0]), (ONES(2, 5, 8), ORDERS)],
)
def test_parallel_mixer(arguments):
    tokens, orders = arguments
    refused(PARALLEL, tokens, Visit(POSITIONS, orders))
    PARALLEL(ONES(2, 4, 8), Visit(POSITIONS, ORDERS))


@pytest.mark.parametrize(
    "arguments",
    [
        (ONES(2, 4, 7), ONES(2, 3, 8)),
        (ONES(2, 4, 8), ONES(2, 3, 7)),
        (ONES(2, 4, 8), ONES(3, 3, 8)),
        (ONES(2, 4, 8), ONES(3, 8)),
        (ONES(2, 4, 8), ONES(2, 3, 8), ONES(2, 4)),
        (ONES(2, 4, 8), ONES(2, 3, 8), ONES(3)),
    ],
)
def test_cross_attention(arguments):
    refused(ATTENTION, *arguments)
    ATTENTION(ONES(2, 4, 8), ONES(2, 3, 8), ONES(2, 3))


@pytest.mark.parametrize("kind", [ZigMa, VisionMamba, ParallelMamba, DiT, UViT])
def test_backbones(kind):
    backbone = kind(2, 2, 2, width=16, depth=1, caption_dim=3)
    x, t, features, mask, dropped = ONES(2, 2, 2, 2), ONES(2), ONES(2, 3, 3), ONES(2, 3).bool(), ONES(2).bool()
    caption = {"caption": Condition(features, mask)}
    backbone(x, t, caption, {"caption": dropped})
    refused(backbone, ONES(2, 2, 2, 3), t, caption)
    refused(backbone, x, ONES(3), caption)
    refused(backbone, x, ONES(()), caption)
    refused(backbone, x, t, features)
    refused(backbone, x, t, {"caption": features})
    refused(backbone, x, t, {"caption": Condition(ONES(3, 3, 3))})
    refused(backbone, x, t, {"caption": Condition(ONES(2, 3, 4))})
    refused(backbone, x, t, {"caption": Condition(features, ONES(2, 4).bool())})
    refused(backbone, x, t, caption, {"caption": ONES(3).bool()})
