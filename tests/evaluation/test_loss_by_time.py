import math

import lightning as L
import pytest
import torch

from zigma_pl.backbones import ZigMa
from zigma_pl.data import Digits
from zigma_pl.evaluation.loss_by_time import MeanByTime, bin_name
from zigma_pl.interpolant import Objective
from zigma_pl.mixers import Mamba
from zigma_pl.training.module import GenerativeModule


def test_means_by_time_weigh_every_sample_alike():
    metric = MeanByTime()
    metric.update(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0.0, 0.05, 0.95]))
    metric.update(torch.tensor([7.0]), torch.tensor([1.0]))
    loss = metric.compute()
    assert loss.value == pytest.approx(4)
    assert loss.by_time == [2.0, *[None] * 8, 6.0]
    assert loss.num_samples == 4
    assert bin_name(9) == "0.9_to_1.0"


def test_sums_are_exact_where_float32_would_not_be():
    metric = MeanByTime()
    for _ in range(4):
        metric.update(torch.full((1000,), 2.0**24), torch.full((1000,), 0.5))
        metric.update(torch.ones(1000), torch.full((1000,), 0.5))
    assert metric.compute().value == (2.0**24 + 1) / 2


def test_without_samples_there_is_no_number():
    metric = MeanByTime()
    assert math.isnan(metric.compute().value)


def test_nothing_is_left_after_a_reset_and_infinite_losses_show():
    metric = MeanByTime()
    metric.update(torch.tensor([1.0]), torch.tensor([0.5]))
    metric.reset()
    metric.update(torch.tensor([torch.inf]), torch.tensor([0.0]))
    assert metric.compute().by_time[0] == math.inf
    assert metric.compute().num_samples == 1


def test_validation_logs_the_loss_by_time(tmp_path):
    backbone = ZigMa(1, 8, 8, patch_size=4, width=16, depth=1, mixers=Mamba(state_size=4))
    trainer = L.Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False)
    module = GenerativeModule(backbone, Objective())
    (metrics,) = trainer.validate(module, datamodule=Digits(batch_size=50), verbose=False)
    by_time = [metrics[f"validation/loss_by_time/{bin_name(number)}"] for number in range(10)]
    assert len(set(by_time)) == 10
    assert metrics["validation/loss"] == pytest.approx(sum(by_time) / 10, rel=0.02)
