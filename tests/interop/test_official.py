import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from interop import official_restatement as official
from safetensors import safe_open
from safetensors.torch import save_file

import zigma_pl
from zigma_pl.cli.main import main
from zigma_pl.core.batch import Condition
from zigma_pl.core.errors import UserError
from zigma_pl.interop import load_zigma_checkpoint
from zigma_pl.interop.official import infer_config, read_state_dict, reverse_time
from zigma_pl.models.layers.embeddings import sinusoid, sinusoid_frequencies
from zigma_pl.models.mixers.mamba import MambaMixer

GOLDEN = Path(os.environ.get("ZIGMA_GOLDEN", Path(__file__).parents[2].parent / "shared" / "golden"))
KINDS = {
    "plain": {},
    "classes": {"num_classes": 5},
    "captions": {"caption_dim": 12},
    "patches": {"patch": 2, "side": 3},
    "bidirectional": {"bidirectional": True},
}


def relative_error(found, expected):
    return float(torch.linalg.norm(found.double() - expected.double()) / torch.linalg.norm(expected.double()))


def as_tensors(arrays):
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def draw_inputs(kind, size, channels=3):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, channels, size, size, generator=generator)
    t = torch.tensor([0.15, 0.8])
    y = {"classes": torch.tensor([3, 0]), "captions": torch.randn(2, 6, 12, generator=generator)}.get(kind)
    return x, t, y


def named(kind, y):
    return None if y is None else {"caption" if kind == "captions" else "class": Condition(y)}


@pytest.mark.parametrize("kind", KINDS)
def test_import_reproduces_the_float64_restatement(kind):
    arrays = official.random_checkpoint(7, **KINDS[kind])
    config = {"scan_type": "zigzagN8"} | infer_config(as_tensors(arrays))
    assert config["scan_type"] == ("v2" if kind == "bidirectional" else "zigzagN8")
    backbone = load_zigma_checkpoint(as_tensors(arrays), config)
    x, t, y = draw_inputs(kind, config["img_dim"])
    expected = np.stack(
        [official.official_forward(arrays, x[i], float(t[i]), None if y is None else y[i].numpy()) for i in range(2)]
    )
    with torch.no_grad():
        found = -backbone(x, 1 - t, named(kind, y))
    assert relative_error(found, torch.from_numpy(expected)) < 1e-5
    mixers = [module for module in backbone.modules() if isinstance(module, MambaMixer)]
    assert bool(mixers) == (kind != "bidirectional")
    assert all((mixer.dt_proj.bias.diff() >= 0).all() for mixer in mixers)


@pytest.mark.parametrize("case", ["zigzag8", "zigzag8_text", "zigzag8_class", "hilbert8", "bidir"])
def test_import_reproduces_the_release(case):
    path = GOLDEN / f"{case}.safetensors"
    if not path.is_file():
        pytest.skip(f"no {path}: set ZIGMA_GOLDEN to the folder of the reference tensors")
    with safe_open(path, "pt") as file:
        description = json.loads(file.metadata()["case"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  safe_open is no mapping
    config = {
        "in_channels": 4,
        "embed_dim": description["dim"],
        "img_dim": description["img"],
        "depth": description["depth"],
        "scan_type": description["scan"],
        "patch_size": description.get("patch", 1),
        "use_pe": 2,
        **{
            key: description[key]
            for key in ("has_text", "d_context", "n_context_token", "num_classes")
            if key in description
        },
    }
    backbone = load_zigma_checkpoint(tensors, config)
    with torch.no_grad():
        conditions = named("captions" if description.get("has_text") else "classes", tensors.get("in.y"))
        found = -backbone(tensors["in.x"], 1 - tensors["in.t"], conditions)
    assert relative_error(found, tensors["out"]) < 1e-4
    assert infer_config(tensors).items() <= (config | {"use_pe": 2}).items()


def test_reversed_time_is_exact_in_the_weights():
    weight = torch.randn(8, 256, dtype=torch.float64)
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    forward = sinusoid(1000 * (1 - t), sinusoid_frequencies(128)).double() @ weight.T
    assert (
        relative_error(sinusoid(1000 * t, sinusoid_frequencies(128)).double() @ reverse_time(weight).T, forward) < 1e-4
    )


def test_command_round_trip(tmp_path, capsys):
    arrays = official.random_checkpoint(3, depth=2)
    save_file({"module." + name: tensor for name, tensor in as_tensors(arrays).items()}, tmp_path / "a.safetensors")
    assert main(["import-zigma", str(tmp_path / "a.safetensors"), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "assuming scan_type zigzagN8" in printed
    assert "wrote" in printed
    backbone = zigma_pl.from_pretrained(tmp_path / "out").backbone
    direct = load_zigma_checkpoint(as_tensors(arrays), infer_config(as_tensors(arrays)) | {"scan_type": "zigzagN8"})
    x, t, _ = draw_inputs("plain", 4)
    with torch.no_grad():
        assert torch.equal(backbone(x, t), direct(x, t))


def test_pickled_checkpoint_takes_the_named_entry(tmp_path):
    tensors = as_tensors(official.random_checkpoint(3, depth=1))
    torch.save({"ema": tensors, "model": {}, "steps": 3}, tmp_path / "a.pt")
    assert read_state_dict(tmp_path / "a.pt").keys() == tensors.keys()
    with pytest.raises(UserError, match="--weights"):
        read_state_dict(tmp_path / "a.pt", "averaged")


class Hostile:
    def __reduce__(self):
        return (print, ("executed",))


def test_pickles_that_would_execute_are_refused(tmp_path, capsys):
    torch.save({"ema": Hostile()}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match=r"bad\.pt"):
        read_state_dict(tmp_path / "bad.pt")
    assert "executed" not in capsys.readouterr().out


def test_an_archive_that_grows_when_it_is_read_is_refused(tmp_path):
    """Kind: sizes in a file that are allocated before they are checked."""
    torch.save({"ema": {"a": torch.zeros(1_000_000)}}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in plain.namelist():
            small.writestr(name, plain.read(name))
    assert read_state_dict(tmp_path / "plain.pt").keys() == {"a"}
    with pytest.raises(UserError, match=r"small\.pt has compressed entries"):
        read_state_dict(tmp_path / "small.pt")


@pytest.mark.parametrize("name", ["cut.pt", "cut.safetensors"])
def test_truncated_checkpoint_is_named(tmp_path, name):
    tensors = as_tensors(official.random_checkpoint(3, depth=1))
    (save_file if name.endswith("safetensors") else torch.save)(tensors, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=name):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scan_type": "v2"}, "config"),
        ({"scan_type": "randomN8"}, "randomN8"),
        ({"scan_type": "zigzagN9"}, "zigzagN1-8"),
        ({"use_pe": 3}, "use_pe 3"),
        ({"video_frames": 16}, "video"),
        ({"depth": 3}, "config"),
    ],
)
def test_what_cannot_be_imported_is_said(change, message):
    tensors = as_tensors(official.random_checkpoint(3, depth=2))
    with pytest.raises(UserError, match=message):
        load_zigma_checkpoint(tensors, infer_config(tensors) | {"scan_type": "zigzagN8"} | change)
