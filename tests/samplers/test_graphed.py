import pytest
import torch

from zigma_pl.backbones import ZigMa
from zigma_pl.samplers.graphed import GraphedBackbone


def build():
    torch.manual_seed(0)
    backbone = ZigMa(2, 4, 4, width=16, depth=2, num_classes=3)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return backbone


def test_without_a_gpu_the_backbone_itself_is_called():
    backbone = build()
    x, t, y = torch.randn(2, 2, 4, 4), torch.rand(2), torch.tensor([0, 2])
    with torch.no_grad():
        assert torch.equal(GraphedBackbone(backbone)(x, t, y), backbone(x, t, y))
    assert GraphedBackbone(backbone).has_null_condition


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device")
def test_replay_follows_inputs_and_weights():
    backbone = build().cuda()
    graphed = GraphedBackbone(backbone)
    with torch.no_grad():
        for seed in range(3):
            torch.manual_seed(seed)
            x, t, y = torch.randn(2, 2, 4, 4).cuda(), torch.rand(2).cuda(), torch.randint(3, (2,)).cuda()
            torch.testing.assert_close(graphed(x, t, y), backbone(x, t, y))
            backbone.final_layer.projection.weight.mul_(1.5)  # in place: the same graph must see it
        assert len(graphed._captures) == 1
        first = graphed(x, t, y)
        kept = first.clone()
        graphed(x + 1, t, y)
        assert torch.equal(first, kept)  # a later call does not write over an earlier result
