"""`export`: what it writes is what was trained, from plain, compiled and distributed runs alike."""

import json
import re
from pathlib import Path

import pytest
import torch

import zigma_pl
from zigma_pl.cli.main import main
from zigma_pl.core.batch import Batch, Condition

OPTIONS = [
    "--model.backbone.init_args.width=16",
    "--model.backbone.init_args.depth=2",
    "--model.sampler.init_args.num_steps=2",
    "--model.objective.prediction=noise",
    "--trainer.max_steps=3",
    "--trainer.val_check_interval=3",
    "--trainer.limit_val_batches=0",
    "--trainer.enable_progress_bar=false",
    "--checkpoint.every_n_train_steps=1",
    "--data.init_args.batch_size=4",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A run's last checkpoint."""
    repository = Path(__file__).parents[2]
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--config", str(repository / "experiments" / "digits.yaml"), *OPTIONS]) == 0
    return folder / "logs" / "digits" / "version_0" / "checkpoints" / "last.ckpt"


def stored(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(("weights", "key"), [("average", "state_dict"), ("raw", "current_model_state")])
def test_model_is_the_one_of_the_checkpoint(checkpoint, tmp_path, weights, key, capsys):
    options = ["--ckpt_path", str(checkpoint), "--out", str(tmp_path / "a" / "model"), "--weights", weights]
    assert main(["export", *options]) == 0
    model = zigma_pl.from_pretrained(tmp_path / "a" / "model")
    expected = stored(checkpoint)[key]
    assert {name: value for name, value in model.state_dict().items() if not torch.equal(value, expected[name])} == {}
    assert model.state_dict().keys() == expected.keys()
    assert model.objective.prediction == "noise"
    assert (model.sampler.method, model.sampler.num_steps, model.guidance.scale) == ("heun", 2, 1.5)
    batch = Batch(None, torch.arange(3), {"class": Condition(torch.arange(3))})
    assert model.sample(batch).latents.shape == (
        3,
        1,
        8,
        8,
    )
    about = json.loads((tmp_path / "a" / "model" / "config.json").read_text())
    assert about["training"] == {"step": 3, "weights": weights}
    assert about["data"] == {"class_path": "zigma_pl.data.Digits", "image_size_px": 8, "autoencoder": "identity"}
    assert about["class_names"] == list("0123456789")
    assert 'zigma_pl.from_pretrained("' in capsys.readouterr().out


def test_float16_takes_half_the_room(checkpoint, tmp_path):
    sizes = {}
    for dtype in ("float32", "float16"):
        assert main(["export", "--ckpt_path", str(checkpoint), "--out", str(tmp_path / dtype), "--dtype", dtype]) == 0
        sizes[dtype] = (tmp_path / dtype / "model.safetensors").stat().st_size
    assert sizes["float16"] < 0.65 * sizes["float32"]  # much of the tiny network is not matrices
    zigma_pl.from_pretrained(tmp_path / "float16")


def test_checkpoint_away_from_its_run_is_enough(checkpoint, in_tmp):
    torch.save(stored(checkpoint), "moved.ckpt")
    assert main(["export", "--ckpt_path", "moved.ckpt", "--out", "model"]) == 0
    assert len(zigma_pl.from_pretrained("model").generate("3", num_steps=1)) == 1
    zigma_pl.from_pretrained("model")


class Hostile:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hyper_parameters": {"learning_rate": 1.0}}, "changed.ckpt.*save_pretrained"),
        ({"callbacks": {"Hostile": Hostile()}}, "print, which could run code"),
        ({"current_model_state": None}, "no average of the weights.*--weights raw"),
        ({"state_dict": {"backbone.blocks.9.norm.weight": torch.ones(3)}}, "parameters are missing.*such as blocks"),
        ({"zigma_format_version": 99}, "version 99"),
        ({"global_step": None}, "not a training checkpoint"),
    ],
)
def test_what_cannot_be_exported_is_one_line(checkpoint, in_tmp, change, message, capsys):
    content = {name: value for name, value in (stored(checkpoint) | change).items() if value is not None}
    torch.save(content, "changed.ckpt")
    refused(["--ckpt_path", "changed.ckpt"], message, capsys)


def test_other_backbones_are_refused_by_name(checkpoint, in_tmp, capsys):
    content = stored(checkpoint)
    content["hyper_parameters"]["backbone"]["class_path"] = "mine.ZigMa"
    torch.save(content, "mine.ckpt")
    refused(["--ckpt_path", "mine.ckpt"], r"mine\.ZigMa.*--allow_import mine", capsys)


def test_files_that_are_no_checkpoints_are_refused(checkpoint, in_tmp, capsys):
    refused(["--ckpt_path", "nowhere.ckpt"], "does not exist", capsys)
    content = checkpoint.read_bytes()
    (in_tmp / "cut.ckpt").write_bytes(content[: len(content) // 2])
    refused(["--ckpt_path", "cut.ckpt"], r"cut\.ckpt|empty\.ckpt", capsys)
    (in_tmp / "empty.ckpt").touch()
    refused(["--ckpt_path", "empty.ckpt"], r"cut\.ckpt|empty\.ckpt", capsys)
    torch.save([1], "list.ckpt")
    refused(["--ckpt_path", "list.ckpt"], "not a training checkpoint", capsys)


def bomb():
    """YAML whose aliases stand for 10^12 values."""
    levels = ["l0: &l0 [x]", *(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 13))]
    return "\n".join([*levels, "data: {class_path: zigma_pl.data.Digits, init_args: {autoencoder: *l12}}"]).encode()


@pytest.mark.parametrize("content", [b"", b"data: 3", b"\xff\xfe\x00", b"[" * 5000, bomb(), b"a: &a [*a]\ndata: *a"])
def test_a_hostile_config_beside_an_old_checkpoint_is_one_line(checkpoint, in_tmp, content, capsys):
    old = stored(checkpoint)
    del old["trained_on"]
    Path("run/checkpoints").mkdir(parents=True)
    torch.save(old, "run/checkpoints/old.ckpt")
    Path("run/config.yaml").write_bytes(content)
    refused(["--ckpt_path", "run/checkpoints/old.ckpt"], r"run/config\.yaml.*remove it", capsys)


def refused(options, message, capsys):
    """Check for one line with the message, and that nothing was written or executed."""
    capsys.readouterr()
    assert main(["export", *options, "--out", "model"]) == 1
    captured = capsys.readouterr()
    assert "executed" not in captured.out
    (line,) = captured.err.splitlines()
    assert re.search(message, line)
    assert not Path("model").exists()


def test_average_that_never_began_is_not_made_up(checkpoint, in_tmp):
    content = stored(checkpoint)
    del content["current_model_state"], content["averaging_state"]
    torch.save(content, "early.ckpt")
    assert main(["export", "--ckpt_path", "early.ckpt", "--out", "model", "--weights", "raw"]) == 0
    exported = zigma_pl.from_pretrained("model").state_dict()
    assert all(torch.equal(exported[name], value) for name, value in content["state_dict"].items())
