"""Classes of other packages: exported, reloaded and sampled from; nothing that is not allowed is imported.

Kinds: custom classes that train but cannot be saved; paths in files that lead to code.
"""

import json
import sys
from importlib import import_module

import numpy as np
import pytest
import torch
import yaml
from interop.own_package import PARTS

import zigma_pl
from zigma_pl.cli.main import main
from zigma_pl.core.batch import Batch, Condition
from zigma_pl.core.class_paths import build_described, described, find_class, options_of, public_path
from zigma_pl.core.errors import UserError
from zigma_pl.data import Digits
from zigma_pl.encoders import HashingTextEncoder
from zigma_pl.interpolant import Objective
from zigma_pl.samplers import Guidance, ODESampler, Sampler
from zigma_pl.scan import OrdersFile, ScanConfig


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The module `own.parts` of a package outside of this one."""
    (tmp_path / "packages" / "own").mkdir(parents=True)
    (tmp_path / "packages" / "own" / "__init__.py").touch()
    (tmp_path / "packages" / "own" / "parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    yield import_module("own.parts")
    for name in ("own", "own.parts"):
        sys.modules.pop(name, None)


def randomised(module, **options):
    torch.manual_seed(0)
    backbone = module(**options)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return backbone


def test_a_model_of_own_classes_samples_as_it_did(own, tmp_path):
    backbone = randomised(own.Convolutions, in_channels=1, side=8, taps=(3, 1), num_classes=2)
    parts = (own.Doubled(3.0, schedule="gvp"), own.Leap(3, length=0.5), own.Mild(2.0, mildness=0.1))
    model = zigma_pl.GenerativeModule(backbone, *parts)
    zigma_pl.save_pretrained(model, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["backbone"] == {
        "class_path": "own.parts.Convolutions",
        "init_args": {"in_channels": 1, "side": 8, "taps": [3, 1], "num_classes": 2},
    }
    with pytest.raises(UserError, match=r"own\.parts\.Doubled.*--allow_import own") as caught:
        zigma_pl.from_pretrained(tmp_path / "model")
    assert "\n" not in str(caught.value)

    loaded = zigma_pl.from_pretrained(tmp_path / "model", allow_imports=("own",))
    for name in ("backbone", "objective", "sampler", "guidance"):
        assert described(getattr(loaded, name)) == described(getattr(model, name))
    batch = Batch(None, torch.arange(3), {"class": Condition(torch.tensor([0, 1, 1]))})
    assert torch.equal(loaded.sample(batch).latents, model.sample(batch).latents)
    pictures = loaded.generate([1, 0], num=2, autoencoder="identity", seed=3)
    assert [picture.size for picture in pictures] == [(8, 8)] * 4


def test_own_mixers_orders_and_subclasses_of_ours_are_kept(own, tmp_path):
    (tmp_path / "orders.json").write_text(json.dumps([list(range(16))[::-1], list(range(16))]))
    for scheme in (own.Backwards(offset=3), OrdersFile(str(tmp_path / "orders.json"))):
        backbone = randomised(
            own.WideZigMa, factor=2, in_channels=1, latent_height=8, latent_width=8,
            mixers=[own.Halving(0.25), own.Halving()], scan=ScanConfig(scheme, num_orders=2),
        )  # fmt: skip
        zigma_pl.save_pretrained(backbone, tmp_path / "model")
        loaded = zigma_pl.load_backbone(tmp_path / "model", allow_imports=("own",))
        x, t = torch.randn(2, 1, 8, 8), torch.rand(2)
        with torch.no_grad():
            assert torch.equal(loaded(x, t), backbone.eval()(x, t))
        assert described(loaded) == described(backbone)
        assert described(loaded)["init_args"]["factor"] == 2
    (tmp_path / "orders.json").write_text(json.dumps([list(range(16))]))
    with pytest.raises(UserError, match=r"orders\.json has changed"):
        zigma_pl.load_backbone(tmp_path / "model", allow_imports=("own",))


def test_a_run_of_own_classes_is_exported_sampled_and_prepared(own, tmp_path, in_tmp, capsys):
    experiment = {
        "model": {
            "backbone": {
                "class_path": "own.parts.Convolutions",
                "init_args": {"in_channels": 1, "side": 8, "num_classes": 2},
            },
            "objective": {"class_path": "own.parts.Doubled", "init_args": {"factor": 3.0}},
            "sampler": {"class_path": "own.parts.Leap", "init_args": {"length": 0.5}},
        },
        "data": {"class_path": "own.parts.ShapeData", "init_args": {"corner": "high"}},
        "trainer": {
            "accelerator": "cpu", "max_steps": 2, "limit_val_batches": 0, "val_check_interval": 2,
            "enable_progress_bar": False, "logger": False,
        },
        "checkpoint": {"dirpath": "checkpoints", "every_n_train_steps": 1},
    }  # fmt: skip
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(experiment))
    assert main(["fit", "--config", "own.yaml"]) == 0
    export = ["export", "--ckpt_path", "checkpoints/last.ckpt", "--out", "model", "--weights", "raw"]
    assert main(export) == 1
    assert "--allow_import own" in capsys.readouterr().err
    assert main([*export, "--allow_import", "own"]) == 0

    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["class_names"] == ["circle", "triangle"]
    assert config["data"]["class_path"] == "own.parts.ShapeData"
    sample = [
        "sample",
        "--model",
        "model",
        "--device",
        "cpu",
        "--num_samples",
        "2",
        "--out",
        "out",
        "--class",
        "triangle",
    ]
    assert main([*sample, "--allow_import", "own"]) == 0
    table = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert [row["class_id"] for row in table["samples"]] == [1, 1]
    model = zigma_pl.from_pretrained("model", allow_imports=("own",))
    assert options_of(model.objective)["factor"] == 3.0
    for number, picture in enumerate(model.generate("triangle", num=2)):
        assert np.array_equal(np.asarray(picture), np.asarray(zigma_pl_picture(tmp_path / "out", number)))

    prepare = ["prepare", "own.parts.ShapeData", "--num_workers=0", "--accelerator=cpu", "--splits", "train"]
    assert main([*prepare, "--out=cache", "--corner=high"]) == 0
    assert len(own.ShapeData("high", cache="cache").samples("train")) == 6
    with pytest.raises(UserError, match=r"corner 'high', .* 'low'"):
        own.ShapeData("low", cache="cache").samples("train")


def zigma_pl_picture(folder, number):
    from PIL import Image

    return Image.open(folder / f"{number:08d}.png")


def test_an_own_text_encoder_goes_with_the_model(own, tmp_path):
    data = Captioned(text_encoder=own.LetterEncoder("abc"))
    backbone = randomised(
        zigma_pl.ZigMa, in_channels=3, latent_height=8, latent_width=8, patch_size=2, width=16, depth=1, caption_dim=3
    )
    model = zigma_pl.GenerativeModule(backbone, Objective(), ODESampler(num_steps=2))
    model.trained_on = data.kept_with_model()
    zigma_pl.save_pretrained(model, tmp_path)
    assert "captions" not in json.loads((tmp_path / "config.json").read_text())
    loaded = zigma_pl.from_pretrained(tmp_path, allow_imports=("own",))
    (first,), (same,), (other,) = (loaded.generate(prompt) for prompt in ("abc", "abc", "aaa"))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    (given,) = loaded.generate("abc", text_encoder=own.LetterEncoder("abc"))
    assert np.array_equal(first, given)
    with pytest.raises(UserError, match="not allowed"):
        zigma_pl.from_pretrained(tmp_path).generate("abc")


class Captioned(Digits.__base__):
    has_captions = True

    def __init__(self, **options):
        super().__init__(image_size_px=8, predict_captions=["abc"], **options)

    def load_split(self, split):
        raise AssertionError


def test_two_crops_do_not_share_what_is_cached(own):
    """Kind: an option that a subclass does not keep under its own name."""
    contents = [own.ShapeData(corner).content() for corner in ("low", "high", "low")]
    assert contents[0] == contents[2] != contents[1]


HOSTILE = [
    "zigma_pl.core.files.os.system",
    "zigma_pl.core.files.written_whole",
    "os.system",
    "own.parts.np.load",
    "own.parts.ODESampler",
    "zigma_pl.interpolant.samplers.base.Sampler",
    "zigma_pl.backbones.ZigMa",
    "zigma_pl",
    "",
    ".",
    "a b",
    "own",
    "own.parts.Missing",
    "own.missing.Leap",
    "zigma_pl.samplers.__dict__",
    "x" * 1000,
    None,
    3,
    ["zigma_pl.samplers.ODESampler"],
    "own.borrowed.Sampler",
    "owner.Leap",
    "own.parts.Leap.__init__",
]


@pytest.mark.parametrize("path", HOSTILE)
def test_paths_that_are_not_allowed_are_refused(own, path):
    with pytest.raises(UserError) as caught:
        find_class(path, Sampler, ("own",))
    assert str(caught.value).isprintable()
    with pytest.raises(UserError):
        find_class(path, Sampler)


def test_what_is_not_allowed_is_not_even_imported(tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    description = {"class_path": "zigma_pl.samplers.ODESampler", "init_args": {"num_steps": {"class_path": "trap.X"}}}
    for given in ({"class_path": "trap.X"}, description):
        with pytest.raises(UserError):
            build_described(given, Sampler)


def test_public_paths_are_those_of_the_alias_modules(own):
    assert public_path(ODESampler) == "zigma_pl.samplers.ODESampler"
    assert public_path(zigma_pl.ZigMa) == "zigma_pl.backbones.ZigMa"
    assert public_path(HashingTextEncoder) == "zigma_pl.encoders.HashingTextEncoder"
    assert public_path(Guidance) == "zigma_pl.samplers.Guidance"
    assert public_path(own.Leap) == "own.parts.Leap"
    for moved in ("zigma_pl.interpolant.samplers.ode.ODESampler", "zigma_pl.from_before.ODESampler", "ODESampler"):
        assert find_class(moved, Sampler) is ODESampler


def test_options_are_those_that_were_given_with_the_defaults_of_the_rest(own):
    assert options_of(own.Leap(3)) == {"num_steps": 3, "length": 1.0}
    assert options_of(own.Mild(2.0)) == {"scale": 2.0, "interval": (0.0, 1.0), "drop": None, "mildness": 0.5}
    assert options_of(own.ShapeData(batch_size=3)) == {"corner": "low", "batch_size": 3}


@pytest.mark.parametrize(
    "orders",
    [
        [[0, 1, 2]],
        [[0, 1, 1, 3]],
        [[1, 2, 3, 4]],
        [[0.0, 1.0, 2.0, 3.0]],
        [[[0, 1], [2, 3]]],
        [],
        [[0], [1, 2]],
        {"a": 1},
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".npy"])
def test_files_that_hold_no_orders_are_refused_in_one_line(tmp_path, orders, suffix):
    path = tmp_path / f"orders{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(orders))
    else:
        np.save(path, np.array(orders, dtype=object if orders == [[0], [1, 2]] else None), allow_pickle=True)
    with pytest.raises(UserError, match="scan") as caught:
        ScanConfig(OrdersFile(str(path))).orders(2, 2)
    assert str(caught.value).isprintable()


def test_orders_of_a_file_are_taken_in_turn(tmp_path):
    np.save(tmp_path / "orders.npy", np.array([[3, 2, 1, 0], [0, 2, 1, 3]]))
    scan = ScanConfig(OrdersFile(str(tmp_path / "orders.npy")))
    assert scan.num_orders == 2
    assert [order.tolist() for order in scan.orders(2, 2)] == [[3, 2, 1, 0], [0, 2, 1, 3]]
    for damaged in (b"", b"\x93NUMPY", (tmp_path / "orders.npy").read_bytes()[:-5]):
        (tmp_path / "damaged.npy").write_bytes(damaged)
        with pytest.raises(UserError, match=r"damaged\.npy"):
            OrdersFile(str(tmp_path / "damaged.npy"))
    with pytest.raises(UserError, match=r"missing\.npy"):
        OrdersFile(str(tmp_path / "missing.npy"))
