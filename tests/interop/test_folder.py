import json

import pytest
import torch

import zigma_pl
from zigma_pl.errors import UserError


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    scan = zigma_pl.backbones.zigma.ScanConfig(scheme="hilbert", num_orders=2)
    backbone = zigma_pl.ZigMa(2, 4, 6, patch_size=2, width=16, depth=3, scan=scan, num_classes=3)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return backbone.eval()


def test_round_trip(backbone, tmp_path):
    loaded = zigma_pl.from_pretrained(zigma_pl.save_pretrained(backbone, tmp_path / "model"))
    x, t, y = torch.randn(2, 2, 4, 6), torch.tensor([0.1, 0.9]), torch.tensor([0, 2])
    with torch.no_grad():
        assert torch.equal(loaded(x, t, y), backbone(x, t, y))
    assert not loaded.training
    assert loaded.config == backbone.config


def test_visit_orders_are_not_stored(backbone, tmp_path):
    zigma_pl.save_pretrained(backbone, tmp_path)
    assert not [name for name in backbone.state_dict() if "visit_order" in name]


@pytest.mark.parametrize("damage", ["no weights", "cut weights", "no config", "cut config", "version", "other width"])
def test_damage_is_named(backbone, tmp_path, damage):
    zigma_pl.save_pretrained(backbone, tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    if damage.startswith("no"):
        (weights if "weights" in damage else config).unlink()
    elif damage.startswith("cut"):
        path = weights if "weights" in damage else config
        path.write_bytes(path.read_bytes()[:100])
    else:
        description = json.loads(config.read_text())
        description |= {"format_version": 99} if damage == "version" else {}
        description["config"] |= {"width": 32} if damage == "other width" else {}
        config.write_text(json.dumps(description))
    expected = "config.json" if "config" in damage or damage == "version" else "model.safetensors"
    with pytest.raises(UserError, match=expected):
        zigma_pl.from_pretrained(tmp_path)
