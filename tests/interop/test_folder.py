import json

import pytest
import torch
from safetensors.torch import load_file

import zigma_pl
from zigma_pl.backbones import ZigMa
from zigma_pl.core.batch import Batch, Condition
from zigma_pl.core.class_paths import described
from zigma_pl.core.errors import UserError
from zigma_pl.interpolant import Objective
from zigma_pl.mixers import Mamba
from zigma_pl.samplers import Guidance, SDESampler
from zigma_pl.scan.schedule import ScanConfig

TOO_SHALLOW = {"in_channels": 2, "latent_height": 4, "latent_width": 6, "width": 16, "depth": 3}


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    scan = ScanConfig(scheme="hilbert", num_orders=2)
    backbone = zigma_pl.ZigMa(2, 4, 6, patch_size=2, width=16, depth=3, scan=scan, num_classes=3)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return backbone.eval()


@pytest.fixture
def model(backbone):
    objective = Objective("gvp", "noise", "velocity", "logit_normal", logit_mean=0.2)
    return zigma_pl.GenerativeModule(
        backbone, objective, SDESampler(num_steps=3, last_step="euler"), Guidance(2.0, (0.1, 0.8)), seed=7
    ).eval()


def test_backbone_round_trip(backbone, tmp_path):
    loaded = zigma_pl.load_backbone(zigma_pl.save_pretrained(backbone, tmp_path / "a" / "model"))
    x, t, y = torch.randn(2, 2, 4, 6), torch.tensor([0.1, 0.9]), {"class": Condition(torch.tensor([0, 2]))}
    with torch.no_grad():
        assert torch.equal(loaded(x, t, y), backbone(x, t, y))
    assert not loaded.training
    assert loaded.config == backbone.config


def test_model_samples_as_it_did_in_one_line(model, tmp_path):
    zigma_pl.save_pretrained(model, tmp_path, {"training": {"step": 5}})
    loaded = zigma_pl.from_pretrained(tmp_path)
    batch = Batch(None, torch.arange(4), {"class": Condition(torch.tensor([0, 1, 2, 0]))})
    assert torch.equal(loaded.sample(batch).latents, model.sample(batch).latents)
    assert not loaded.training
    assert described(loaded.sampler) == described(model.sampler)
    assert (loaded.guidance, loaded.objective.logit_mean) == (model.guidance, 0.2)
    assert json.loads((tmp_path / "config.json").read_text())["training"] == {"step": 5}


def test_format_1_is_read_with_the_same_numbers(model, tmp_path):
    """It named classes without paths, and options of the mixers were the backbone's."""
    zigma_pl.save_pretrained(model, tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    options = config["backbone"]["init_args"]
    assert options.pop("mixers") == described(Mamba())
    options["scan"] = options["scan"]["init_args"]
    of_mamba = {"state_size": 16, "expand": 2, "conv_kernel": 4, "scan_backend": "auto", "activation_memory": "lean"}
    path.write_text(
        json.dumps(
            {
                "format_version": 1,
                "backbone": "ZigMa",
                "config": options | of_mamba,
                "objective": config["objective"]["init_args"],
                "sampler": {"class": "SDESampler", "options": config["sampler"]["init_args"]},
                "guidance": config["guidance"]["init_args"],
                "seed": config["seed"],
                "training": {"step": 5, "weights": "average"},
                "data": {"class": "zigma_pl.data.Digits", "autoencoder": "identity", "image_size_px": 4},
                "weights_sha256": config["weights_sha256"],
            }
        )
    )
    loaded = zigma_pl.from_pretrained(tmp_path)
    batch = Batch(None, torch.arange(2), {"class": Condition(torch.tensor([0, 2]))})
    assert torch.equal(loaded.sample(batch).latents, model.sample(batch).latents)
    assert loaded.trained_on["data"]["class_path"] == "zigma_pl.data.Digits"


def test_matrices_may_take_half_the_room(backbone, tmp_path):
    whole, half = tmp_path / "whole", tmp_path / "half"
    zigma_pl.save_pretrained(backbone, whole)
    zigma_pl.save_pretrained(backbone, half, matrix_dtype=torch.float16)
    stored = load_file(half / "model.safetensors")
    assert stored["blocks.0.mixer.in_proj.weight"].dtype == torch.float16
    for name in ("blocks.0.mixer.A_log", "blocks.0.mixer.D", "blocks.0.norm.weight", "position_embedding.table"):
        assert stored[name].dtype == torch.float32
    loaded = zigma_pl.load_backbone(half)
    for name, weight in zigma_pl.load_backbone(whole).state_dict().items():
        assert loaded.state_dict()[name].dtype == torch.float32
        torch.testing.assert_close(loaded.state_dict()[name], weight, rtol=2**-11, atol=2**-25)


def test_visit_orders_are_not_stored(backbone, tmp_path):
    zigma_pl.save_pretrained(backbone, tmp_path)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "visit_order" in name]


def test_backbone_alone_has_nothing_to_sample_by(backbone, tmp_path):
    zigma_pl.save_pretrained(backbone, tmp_path)
    with pytest.raises(UserError, match=r"config\.json.*load_backbone"):
        zigma_pl.from_pretrained(tmp_path)


def test_classes_that_cannot_be_imported_are_not_saved(tmp_path):
    class Mine(ZigMa):
        pass

    with pytest.raises(UserError, match="Mine cannot be imported"):
        zigma_pl.save_pretrained(Mine(2, 4, 6, width=16, depth=1), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["no weights", "cut weights", "no config", "cut config", "flipped weights"])
def test_damaged_files_are_named(model, tmp_path, damage):
    zigma_pl.save_pretrained(model, tmp_path)
    path = tmp_path / ("model.safetensors" if "weights" in damage else "config.json")
    content = bytearray(path.read_bytes())
    if damage.startswith("no"):
        path.unlink()
    elif damage.startswith("cut"):
        path.write_bytes(content[: len(content) // 2])
    else:
        content[-1] ^= 1
        path.write_bytes(content)
    with pytest.raises(UserError, match=path.name):
        zigma_pl.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "format_version 99"),
        ({"format_version": None}, "format_version"),
        ({"backbone": {"class_path": "Mamba9"}}, "Mamba9.*Backbone"),
        ({"backbone": ["ZigMa"]}, "backbone"),
        ({"backbone": {"class_path": "zigma_pl.backbones.ZigMa", "init_args": {"size": "S"}}}, "backbone"),
        ({"backbone": {"class_path": "zigma_pl.backbones.ZigMa", "init_args": TOO_SHALLOW}}, "ZigMa"),
        ({"backbone": {"class_path": "zigma_pl.backbones.Backbone"}}, "abstract"),
        ({"objective": {"class_path": "Objective", "init_args": {"prediction": "speed"}}}, "objective.*prediction"),
        (
            {"objective": {"class_path": "Objective", "init_args": {"prediction": ["noise"]}}},
            "objective.*prediction",
        ),
        ({"sampler": {"class_path": "zigma_pl.samplers.Magic"}}, "Magic.*Sampler"),
        ({"sampler": {"class_path": "zigma_pl.backbones.ZigMa"}}, "Sampler"),
        (
            {"sampler": {"class_path": "zigma_pl.core.files.os.system", "init_args": {"command": "x"}}},
            "Sampler",
        ),
        ({"sampler": {"class_path": "os.system"}}, "not allowed.*--allow_import os"),
        ({"sampler": {"class_path": "elsewhere.Magic"}}, "not allowed"),
        ({"sampler": {}}, "sampler"),
        ({"sampler": {"class_path": "SDESampler", "init_args": {"num_steps": "3"}}}, "sampler.*num_steps"),
        ({"guidance": {"class_path": "Guidance", "init_args": {"scale": -1.0, "interval": [0, 1]}}}, "guidance"),
        ({"class_names": [3]}, "class_names"),
        ({"guidance": None}, "guidance"),
        ({"seed": -1}, "seed"),
        ({"data": {"text_encoder": "elsewhere.Encoder"}}, "text_encoder"),
    ],
)
def test_config_of_something_else_is_refused_in_one_line(model, tmp_path, change, message):
    zigma_pl.save_pretrained(model, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message) as caught:
        zigma_pl.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_option_of_another_type_is_refused(backbone, tmp_path):
    zigma_pl.save_pretrained(backbone, tmp_path)
    path = tmp_path / "config.json"
    description = json.loads(path.read_text())
    description["backbone"]["init_args"]["residual"] = ["prenorm"]
    path.write_text(json.dumps(description))
    with pytest.raises(UserError, match="residual"):
        zigma_pl.load_backbone(tmp_path)


def test_interrupted_export_over_an_older_one_is_noticed(model, backbone, tmp_path, monkeypatch):
    """Killed between the two files: new weights beside the old description."""
    zigma_pl.save_pretrained(model, tmp_path)
    backbone.final_layer.projection.weight.data.add_(1)
    monkeypatch.setattr("zigma_pl.interop.folder.write_record", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        zigma_pl.save_pretrained(model, tmp_path)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"model\.safetensors.*config\.json"):
        zigma_pl.from_pretrained(tmp_path)
