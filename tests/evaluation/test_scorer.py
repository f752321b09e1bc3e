"""A tiny checkpoint of the digits, and of clips, scored with features that need no weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from data.prepared.tiny import faces, write_faces
from evaluation import scored_run
from evaluation.tiny_run import SIZE, build, chunks, trainer_for
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from processes import Processes, of_lightning

from zigma_pl.backbones import ZigMa
from zigma_pl.cli.main import main
from zigma_pl.data import Digits
from zigma_pl.encoders.autoencoder import IdentityAutoencoder
from zigma_pl.evaluation import scoring
from zigma_pl.evaluation.metrics.clip_score import ClipScore
from zigma_pl.evaluation.order_agreement import measured_orders
from zigma_pl.evaluation.record import read_result
from zigma_pl.evaluation.sampling import describe_sampling
from zigma_pl.interpolant import Objective
from zigma_pl.models.flops import count_flops
from zigma_pl.samplers import Guidance, ODESampler, SDESampler
from zigma_pl.training.callbacks.ema import EMA
from zigma_pl.training.callbacks.scorer import Scorer
from zigma_pl.training.callbacks.throughput import Throughput
from zigma_pl.training.module import GenerativeModule

# --- the record -------------------------------------------------------------------------------------------------------


def test_record_says_what_was_scored_and_how(score, trained, capsys):
    record = score()
    assert list(record.scores) == [
        "validation_loss", "velocity_loss", "fid_lite", "kid_lite", "precision_lite", "recall_lite"
    ]  # fmt: skip
    loss = record.scores["validation_loss"]
    assert loss.value == pytest.approx(np.mean([part for part in loss.by_time if part is not None]), rel=0.2)
    assert len(loss.by_time) == 10
    assert record.scores["velocity_loss"] == loss  # of the plain velocity objective
    assert all(np.isfinite(score.value) for score in record.scores.values())
    protocol = record.protocol
    assert (protocol["num_fake"], protocol["num_real"], protocol["num_loss_samples"]) == (24, 179, 179)
    assert (protocol["num_network_calls"], protocol["guidance"]["scale"]) == (2, 2.0)
    assert (protocol["weights"], protocol["split"], protocol["seed"]) == ("average", "test", 0)
    assert (protocol["precision"], protocol["kid_subset_size"]) == ("32-true", 5)
    assert protocol["extractors"]["lite"]["weights_sha256"] == "00"
    assert set(protocol["reference_sha256"]) == {"lite"}
    training = record.training
    assert (training["steps"], training["samples_seen"]) == (2, 16)
    assert training["seconds"] > 0
    assert training["log_folder"] == str(trained["digits"])
    assert training["parameters"] == build().backbone.num_parameters()
    assert training["gflops"] == count_flops(build().backbone).total / 1e9
    assert training["memory_gb"] is None  # trained on the CPU
    assert record.machine["torch"] == torch.__version__
    with Image.open(record.pictures["grid"]) as grid:
        assert grid.size == (8 * 130 + 2, 3 * (130 + 17) + 2)  # labels are 17 pixels high
    first_row = Digits().held_out_conditions("test", range(8)).class_ids.tolist()
    assert record.pictures["captions"] == list(map(str, first_row))
    printed = capsys.readouterr().out
    assert "24 samples of the average weights, 2 network calls each, 179 real samples (test split)" in printed
    assert "lite, not comparable with published FID" in printed
    assert printed.rstrip().endswith("record: results/row.json")


def test_samples_of_other_weak_models_are_kept_apart():
    module, descriptions = build(), []
    for weak in (None, build(), build()):
        if weak is not None:
            torch.nn.init.normal_(weak.backbone.final_layer.projection.weight)
            module.guide_with(weak)
        descriptions.append(describe_sampling(module, Digits(), "test", "32-true"))
    assert "weak_model" not in descriptions[0]
    assert descriptions[1] != descriptions[2]
    assert {**descriptions[1], "weak_model": 0} == {**descriptions[2], "weak_model": 0}


def test_record_tells_the_memory_that_training_took(in_tmp, fake_features, monkeypatch):
    monkeypatch.setattr(Throughput, "_peak_bytes_until_now", lambda self, trainer: 3 * 10**9)
    saving = ModelCheckpoint("checkpoints", every_n_train_steps=2, save_last=True)
    training = trainer_for(".", [EMA(decay=0.5), Throughput(), saving])
    training.log_every_n_steps = 1
    training.fit(build(), datamodule=Digits(batch_size=8))
    scoring = trainer_for(".", [EMA(), Throughput(), Scorer(num_samples=0, name="row")])
    scoring.test(build(), datamodule=Digits(), ckpt_path="checkpoints/last.ckpt", weights_only=True)
    assert read_result(Path("results/row.json")).training["memory_gb"] == 3.0


def test_loss_alone_needs_neither_features_nor_samples(score):
    record = score(num_samples=0, metrics=["fid_lite"])
    assert list(record.scores) == ["validation_loss", "velocity_loss"]
    assert not Path("samples").exists()
    assert not Path("reference").exists()
    assert (record.protocol["seed"], record.protocol["image_size_px"]) == (0, 8)
    (orders,) = measured_orders([Path("results/row.json")]).values()
    assert (orders.loss, orders.height) == (record.scores["validation_loss"].value, 2)


def test_loss_alone_needs_no_weights_of_the_autoencoder(score, monkeypatch):
    monkeypatch.setattr(IdentityAutoencoder, "fingerprint", lambda self: 1 / 0)
    assert score(num_samples=0).protocol["weights"] == "average"


def test_loss_is_of_the_weights_that_are_asked_for(score, trained):
    checkpoint = torch.load(trained["digits"] / "checkpoints" / "last.ckpt", weights_only=True)

    def expected(weights):
        module = build().eval()
        module.load_state_dict(checkpoint[weights])
        trainer = trainer_for(Path(), [])
        return trainer.test(module, datamodule=Digits(batch_size=50), verbose=False)[0]["test/loss"]

    losses = {
        weights: score(num_samples=0, weights=weights).scores["validation_loss"].value for weights in ("average", "raw")
    }
    assert losses["average"] == pytest.approx(expected("state_dict"), rel=1e-6)
    assert losses["raw"] == pytest.approx(expected("current_model_state"), rel=1e-6)
    assert losses["average"] != pytest.approx(losses["raw"], rel=1e-4)
    seeded = score(module=build(seed=7), num_samples=0).scores["validation_loss"].value
    assert seeded == losses["average"]  # rows and seeds see the same noise


def test_samples_are_those_of_the_module_under_the_held_out_classes(score, trained):
    score(num_samples=16, metrics=[])
    (path,) = Path("samples/row").rglob("chunk-*.npz")
    module = build().eval()
    module.load_state_dict(torch.load(trained["digits"] / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
    data = Digits()
    batch = data.encode(data.held_out_conditions("test", range(16)), "cpu")
    expected = (data.decode(module.sample(batch).latents) * 255).round().byte()
    np.testing.assert_array_equal(np.load(path)["pictures"], expected.numpy())
    labels = data.load_split("test").labels[:16].tolist()
    assert batch.conditions["class"].values.tolist() == labels


def test_clips_are_scored_by_frame_and_by_clip(score):
    record = score(of="clips", num_samples=5, num_columns=2)
    assert list(record.scores) == ["validation_loss", "velocity_loss", "frame_fid_lite"]
    assert record.protocol["num_real"] == 6
    with np.load(next(Path("reference").glob("*-lite-frames.statistics.npz"))) as statistics:
        assert statistics["count"] == 6 * 3
    with Image.open(record.pictures["grid"]) as stills:
        assert stills.size == (3 * 130 + 2, 5 * (130 + 17) + 2)
    (moving,) = record.pictures["clips"]
    assert Path(moving).is_file()


class FakeClipScore(ClipScore):
    """Counts the letters of the caption, and the mean of the picture."""

    def load(self, weights):
        self.comparable = True

    def scores(self, pictures, captions):
        return pictures.float().mean(dim=(1, 2, 3)) + torch.tensor([float(len(caption)) for caption in captions])

    def fingerprint(self):
        return {"name": "clip_score"}


def test_captions_are_scored_with_the_pictures_drawn_under_them(trained, score, monkeypatch, tmp_path):
    monkeypatch.setattr(scoring, "ClipScore", FakeClipScore)
    data = faces(write_faces(tmp_path / "mm"))
    torch.manual_seed(0)
    module = GenerativeModule(ZigMa(3, 16, 16, caption_dim=16, **SIZE), Objective(), sampler=ODESampler(num_steps=1))
    saving = ModelCheckpoint(trained["digits"] / "checkpoints", filename="faces", every_n_train_steps=2)
    trainer_for(tmp_path, [EMA(), saving]).fit(module, datamodule=data)
    record = score(module=module, data=data, ckpt_path="faces.ckpt", num_samples=18, metrics=["clip_score"])
    captions = data.held_out_conditions("test", range(18)).captions
    pictures = np.concatenate([np.load(path)["pictures"] for path in sorted(Path("samples/row").rglob("chunk-*.npz"))])
    expected = pictures[:18].mean() + np.mean([len(caption) for caption in captions])
    assert record.scores["clip_score"].value == pytest.approx(expected, rel=1e-6)
    assert record.scores["clip_score"].comparable
    assert record.protocol["num_real"] is None
    assert record.protocol["conditions"]["num_items"] == 4


# --- the same samples, however they are drawn -------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [ODESampler(num_steps=2), SDESampler(num_steps=3)], ids=["ode", "sde"])
def test_more_samples_or_another_batch_size_change_none_that_are_there(score, sampler):
    score(build(sampler=sampler), samples_dir="one", num_samples=40, metrics=[])
    score(build(sampler=sampler), samples_dir="more", num_samples=3, metrics=[], batch_size=3)
    assert list(chunks("more")) == ["chunk-00000000.npz"]
    score(build(sampler=sampler), samples_dir="more", num_samples=40, metrics=[], data=Digits(batch_size=7))
    assert chunks("one") == chunks("more")
    assert len(chunks("one")) == 3


def test_run_that_was_cut_off_goes_on(score, monkeypatch):
    drawn, sample = [], GenerativeModule.sample

    def killed_at_the_third(self, batch, guidance=None):
        drawn.append(batch.sample_ids[0].item())
        if len(drawn) == 3:
            raise MemoryError
        return sample(self, batch, guidance)

    score(samples_dir="whole", num_samples=64)
    whole = Path("results/row.json").read_text()
    monkeypatch.setattr(GenerativeModule, "sample", killed_at_the_third)
    Path("results/row.json").unlink()
    with pytest.raises(MemoryError):
        score(num_samples=64)
    assert not Path("results/row.json").exists()
    score(num_samples=64)
    assert drawn == [0, 16, 32, 32, 48]
    assert chunks("whole") == chunks("samples")
    scores = [json.loads(text)["scores"] for text in (whole, Path("results/row.json").read_text())]
    assert scores[0] == scores[1]


def test_other_options_are_other_samples(score):
    score(metrics=[])
    score(build(guidance=Guidance(scale=3.0)), metrics=[])
    score(build(sampler=ODESampler(num_steps=3)), metrics=[])
    score(build(seed=1), metrics=[])
    score(weights="raw", metrics=[])
    folders = [path for path in Path("samples/row").iterdir() if (path / "sampling.json").is_file()]
    assert len(folders) == 5
    score(metrics=[])
    assert len(list(Path("samples/row").iterdir())) == 5


def test_two_processes_draw_and_score_as_one(trained, in_tmp, repository, fake_features):
    tiny = {"width": 16, "depth": 1, "patch_size": 4, "mixers": "zigma_pl.mixers.Mamba", "mixers.state_size": 4}
    common = ["--config", str(repository / "experiments" / "digits.yaml"), "--trainer.enable_progress_bar=false"]
    common += [f"--model.backbone.init_args.{name}={value}" for name, value in tiny.items()]
    common += ["--model.sampler.init_args.num_steps=2", "--scorer.kid_subset_size=20", "--scorer.num_grid=4"]
    common += ["--ckpt_path", str(trained["digits"] / "checkpoints" / "last.ckpt")]

    def arguments(name, num_samples):
        options = ("results_dir", "samples_dir", "reference_folder")
        folders = [f"--scorer.{option}={name}-{option}" for option in options]
        return ["test", *common, *folders, f"--scorer.num_samples={num_samples}"]

    assert main(arguments("one", 64)) == 0
    assert main([*arguments("two", 3), "--scorer.metrics=[]"]) == 0
    assert list(chunks("two-samples_dir")) == ["chunk-00000000.npz"]
    call = (scored_run.main, *arguments("two", 64), "--trainer.devices=2", "--trainer.strategy=ddp")
    Processes("two", in_tmp, call, call, environments=of_lightning(2)).wait()
    assert chunks("one-samples_dir") == chunks("two-samples_dir")
    assert len(chunks("one-samples_dir")) == 4
    one, two = (read_result(f"{name}-results_dir/digits.json") for name in ("one", "two"))
    assert two.machine["processes"] == 2
    for name, score in one.scores.items():
        assert two.scores[name].value == pytest.approx(score.value, rel=1e-9, abs=1e-9), name
    assert len(list(Path("two-reference_folder").iterdir())) == 3
