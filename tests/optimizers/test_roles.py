import pytest
import torch
from backbones import tiny
from torch import nn

from zigma_pl.backbones import DiT, UViT, ZigMa
from zigma_pl.optimizers import parameter_groups, parameter_roles


@pytest.mark.parametrize("backbone_class", [ZigMa, DiT, UViT])
def test_input_and_output_maps_tables_and_vectors(backbone_class):
    roles = parameter_roles(tiny.build(backbone_class, num_classes=4, position_embedding="learnable"))
    assert roles["patch_embedding.projection.weight"] == "projection"
    assert roles["position_embedding.table"] == "embedding"
    assert roles["conditioners.class.table.weight"] == "embedding"
    output = "projection.weight" if backbone_class is UViT else "final_layer.projection.weight"
    assert roles[output] == "projection"
    assert {role for name, role in roles.items() if name.endswith(".bias") and "dt_proj" not in name} == {"vector"}


def test_parameters_of_a_state_space_layer():
    roles = parameter_roles(tiny.build(ZigMa, caption_dim=5))
    mixer = {name.rpartition("mixer.")[2]: role for name, role in roles.items() if "blocks.0.mixer." in name}
    scan = {name for name, role in mixer.items() if role == "scan"}
    assert {name.rpartition("direction.")[2] for name in scan} == {
        "A_log",
        "D",
        "dt_proj.bias",
    }
    assert mixer["in_proj.weight"] == mixer["out_proj.weight"] == "matrix"
    assert mixer["conv_weight"] == "convolution"
    null_tokens = [role for name, role in roles.items() if name.endswith("null_token")]
    assert null_tokens == ["embedding"]


def test_the_innermost_declaration_decides():
    class Inner(nn.Module):
        parameter_roles = {"table": "embedding"}  # noqa: RUF012

        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.zeros(2, 2))
            self.linear = nn.Linear(2, 2)

    class Outer(nn.Module):
        parameter_roles = {"inner.table": "scan", "inner.linear.weight": "projection"}  # noqa: RUF012

        def __init__(self):
            super().__init__()
            self.inner = Inner()

    roles = parameter_roles(Outer())
    assert roles == {"inner.table": "embedding", "inner.linear.weight": "projection", "inner.linear.bias": "vector"}


def test_groups_hold_every_trained_parameter_once():
    module = tiny.build(ZigMa, num_classes=4)
    module.patch_embedding.requires_grad_(False)
    groups = parameter_groups([module, nn.Linear(2, 2)])
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped)) == sum(p.requires_grad for p in module.parameters()) + 2
    undecayed = {group["role"] for group in groups if group.get("weight_decay") == 0.0}
    assert undecayed == {"embedding", "vector", "scan"}
