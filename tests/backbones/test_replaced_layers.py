"""Backbones whose linear layers were all replaced by LoRA layers."""

import pytest
from backbones import tiny
from backbones.tiny import BACKBONES
from torch import nn


class LowRank(nn.Module):
    """Adds a product of low rank, which is trained, to a linear layer, which is not."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, 2, bias=False)
        self.up = nn.Linear(2, layer.out_features, bias=False)
        self.in_features, self.weight, self.bias = layer.in_features, layer.weight, layer.bias

    def forward(self, rows):
        return self.layer(rows) + self.up(self.down(rows))


@pytest.mark.parametrize("name", BACKBONES)
def test_lora_layers_are_trained(name):
    options, conditions = tiny.CONDITIONS["both"]
    backbone = tiny.build(BACKBONES[name], **options)
    for path, layer in list(backbone.named_modules()):
        parent, _, attribute = path.rpartition(".")
        if isinstance(layer, nn.Linear) and attribute != "dt_proj":  # which is not called
            setattr(backbone.get_submodule(parent), attribute, LowRank(layer))
    backbone(*tiny.draw(), tiny.masked(conditions)).square().sum().backward()
    low_rank = [layer for layer in backbone.modules() if isinstance(layer, LowRank)]
    assert low_rank
    assert all(layer.up.weight.grad.any() for layer in low_rank)
