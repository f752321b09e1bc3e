"""Tiny checkpoints, scored with features that need no weights."""

from pathlib import Path

import pytest
from callbacks.moving_bars import MovingBars
from evaluation.fake_extractor import build_fake
from evaluation.tiny_run import build, trainer_for
from lightning.pytorch.callbacks import ModelCheckpoint

from zigma_pl.data import Digits
from zigma_pl.evaluation import scoring
from zigma_pl.evaluation.record import read_result
from zigma_pl.training.callbacks.ema import EMA
from zigma_pl.training.callbacks.scorer import Scorer
from zigma_pl.training.callbacks.training_totals import TrainingTotals


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders of two-step runs: of digits, and of clips."""
    folders = {}
    for name, data in (("digits", Digits(batch_size=8)), ("clips", MovingBars())):
        folder = folders[name] = tmp_path_factory.mktemp(name)
        saving = ModelCheckpoint(folder / "checkpoints", every_n_train_steps=2, save_last=True)
        trainer_for(folder, [EMA(decay=0.5), TrainingTotals(), saving]).fit(build(name == "clips"), datamodule=data)
    return folders


@pytest.fixture
def fake_features(monkeypatch):
    monkeypatch.setattr(scoring, "build_extractor", build_fake)


@pytest.fixture
def score(trained, in_tmp, fake_features):
    """Score a checkpoint with the given options of the scorer; returns the record."""

    def run(module=None, data=None, of="digits", ckpt_path="last.ckpt", **options):
        given = {"num_samples": 24, "kid_subset_size": 5, "name": "row", "reference_folder": "reference"} | options
        datamodule = data or (Digits() if of == "digits" else MovingBars())
        module = module or build(of == "clips")
        trainer = trainer_for(in_tmp, [EMA(), TrainingTotals(), Scorer(**given)])
        checkpoint = None if ckpt_path is None else trained[of] / "checkpoints" / ckpt_path
        trainer.test(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
        return read_result(Path("results") / "row.json")

    return run
