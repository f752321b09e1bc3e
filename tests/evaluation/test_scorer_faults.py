"""What goes wrong while a checkpoint is scored: one line, and nothing half done is left."""

import errno
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation.tiny_run import chunks

from zigma_pl.cli.main import main
from zigma_pl.core.errors import UserError
from zigma_pl.data import Digits
from zigma_pl.evaluation import scoring
from zigma_pl.interpolant import Objective
from zigma_pl.training.callbacks.scorer import Scorer
from zigma_pl.training.module import GenerativeModule, Samples


def one_line(caught):
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_missing_checkpoint_is_one_line(score, capsys, repository):
    with pytest.raises(UserError, match="--ckpt_path"):
        score(ckpt_path=None)
    assert main(["test", "--config", str(repository / "experiments" / "digits.yaml")]) == 1
    assert "error: test needs a checkpoint: pass --ckpt_path" in capsys.readouterr().err


def test_checkpoint_without_an_average_is_refused(trained, score):
    checkpoint = torch.load(trained["digits"] / "checkpoints" / "last.ckpt", weights_only=True)
    raw = checkpoint.pop("current_model_state")
    torch.save(checkpoint | {"state_dict": raw}, trained["digits"] / "checkpoints" / "early.ckpt")
    with pytest.raises(UserError, match=r"early\.ckpt has no average.*--scorer.weights raw"):
        score(ckpt_path="early.ckpt", num_samples=0)
    assert score(ckpt_path="early.ckpt", num_samples=0, weights="raw").protocol["weights"] == "raw"


def test_missing_weights_are_found_before_anything_is_computed(score, monkeypatch):
    def missing(name, weights=None):
        raise UserError(f"{name}: there is no file {weights}")

    monkeypatch.setattr(scoring, "build_extractor", missing)
    monkeypatch.setattr(GenerativeModule, "on_load_checkpoint", missing)
    with pytest.raises(UserError, match=r"inception: there is no file nowhere\.pth"):
        score(metrics=["fid"], extractor_weights={"inception": "nowhere.pth"})


def test_pictures_that_are_not_finite_stop_the_run_although_the_latents_are(score, monkeypatch):
    monkeypatch.setattr(Digits, "decode", lambda self, latents: latents / (latents - latents.flatten()[0]))
    with pytest.raises(UserError, match=r"samples 0 are not finite.*autoencoder"):
        score()
    assert not chunks("samples")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_without_a_value_is_an_error_and_no_record(value, score, monkeypatch):
    """Kind: wrong numbers without a word."""
    monkeypatch.setattr(Objective, "loss_weight", lambda self, t: t + value)
    with pytest.raises(UserError, match="the loss is"):
        score(num_samples=0)
    assert not Path("results/row.json").exists()


@pytest.mark.parametrize("fault", ["not finite", "single colour"])
def test_failed_sampling_stops_the_run(fault, score, monkeypatch):
    def failing(self, batch, guidance=None):
        latents = torch.rand(len(batch.sample_ids), 1, 8, 8)
        latents[1] = torch.nan if fault == "not finite" else 0.5
        return Samples(latents, batch.sample_ids, 2)

    monkeypatch.setattr(GenerativeModule, "sample", failing)
    with pytest.raises(UserError, match=f"sampling failed.* samples 1 .*{fault}") as caught:
        score()
    one_line(caught)
    assert not Path("results/row.json").exists()
    assert not chunks("samples")


def test_damaged_chunk_is_named(score):
    score(metrics=[])
    path = next(Path("samples/row").rglob("chunk-00000016.npz"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"chunk-00000016\.npz is damaged"):
        score(metrics=[])


def test_full_disk_leaves_whole_files_only(score, monkeypatch):
    savez = np.savez

    def full(file, **arrays):
        if arrays["sample_ids"][0] == 16:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        savez(file, **arrays)

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        score(metrics=[])
    assert {path.name for path in Path("samples").rglob("*.*")} == {"chunk-00000000.npz", "sampling.json"}


def test_subsets_larger_than_the_set_are_found_first(score):
    with pytest.raises(UserError, match=r"scorer\.kid_subset_size to at most 24"):
        score(kid_subset_size=1000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["fidd"]}, "unknown score 'fidd'"),
        ({"num_samples": -1}, "scorer.num_samples"),
        ({"batch_size": 0}, "scorer.batch_size"),
        ({"frames_per_second": 99}, "scorer.frames_per_second"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        Scorer(**options)
