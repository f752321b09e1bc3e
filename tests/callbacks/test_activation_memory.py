"""Layers store more activations after the first step if the memory of the GPU, emulated here, suffices."""

import lightning as L
import pytest
import torch

from zigma_pl.backbones import ZigMa
from zigma_pl.data import Digits
from zigma_pl.mixers import Mamba
from zigma_pl.training.callbacks import activation_memory
from zigma_pl.training.callbacks.activation_memory import ActivationMemory, extra_bytes
from zigma_pl.training.module import GenerativeModule

WIDTH, STATES, DEPTH, BATCH = 16, 4, 2, 8
# 16 tokens an image; four float32 tensors of the inner width, and states after 8 instead of 32 tokens
NEEDED = BATCH * 16 * 2 * WIDTH * DEPTH * (4 * 4 + STATES * 4 * 3 / 32)


def fit(folder, monkeypatch, available, callback=None, compile_backbone=False, **options):
    monkeypatch.setattr(activation_memory, "available_bytes", lambda device: available)
    backbone = ZigMa(1, 8, 8, 2, width=WIDTH, depth=DEPTH, num_classes=10, **options)
    module = GenerativeModule(backbone)
    module.compile_backbone = compile_backbone
    callback = callback or ActivationMemory()
    trainer = L.Trainer(
        default_root_dir=folder,
        max_steps=2,
        accelerator="cpu",
        devices=1,
        callbacks=[callback],
        limit_val_batches=0,
        use_distributed_sampler=False,
        **dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger"), False),
    )
    trainer.fit(module, datamodule=Digits(batch_size=BATCH))
    return callback, [block.mixer.activation_memory for block in backbone.blocks], module


@pytest.mark.parametrize(("missing", "found"), [(0, "fast"), (1, "auto")])
def test_the_free_memory_decides(tmp_path, monkeypatch, missing, found):
    mixers = Mamba(state_size=STATES)
    callback, layers, _ = fit(tmp_path, monkeypatch, NEEDED - missing, mixers=mixers)
    assert layers == [found] * DEPTH
    assert callback.stores_more is (found == "fast")


def test_layers_that_name_their_memory_are_not_changed(tmp_path, monkeypatch):
    plan = [Mamba(state_size=STATES, activation_memory="lean"), Mamba(state_size=STATES)]
    _, layers, module = fit(tmp_path, monkeypatch, NEEDED, mixers=plan)
    assert layers == ["lean", "fast"]
    assert extra_bytes(module, BATCH) == 0  # nothing is left to choose


@pytest.mark.parametrize("options", [{"gradient_checkpointing": True}, {"mixers": Mamba(activation_memory="fast")}])
def test_networks_without_a_choice(tmp_path, monkeypatch, options):
    callback, _, _ = fit(tmp_path, monkeypatch, 1e12, **options)
    assert callback.stores_more is None


def test_later_steps_do_not_look_again(tmp_path, monkeypatch):
    counted = []
    monkeypatch.setattr(activation_memory, "extra_bytes", lambda module, batch_size: counted.append(batch_size) or 0)
    fit(tmp_path, monkeypatch, NEEDED)
    assert counted == [BATCH]  # of two steps


def test_a_resumed_run_keeps_the_choice(tmp_path, monkeypatch):
    resumed = ActivationMemory()
    resumed.load_state_dict({"stores_more": True})
    assert fit(tmp_path, monkeypatch, 0, resumed)[1] == ["fast"] * DEPTH


def test_the_cpu_has_no_choice():
    assert activation_memory.available_bytes(torch.device("cpu")) is None
