"""A short training run that remembers what it logs, for one process and for several."""

from functools import partial

import lightning as L
import torch

from zigma_pl.backbones import ZigMa
from zigma_pl.data import Digits
from zigma_pl.interpolant import Objective
from zigma_pl.mixers import Mamba
from zigma_pl.optimizers import ByRole, Constant, Muon
from zigma_pl.training.callbacks.ema import EMA
from zigma_pl.training.module import GenerativeModule

NUM_STEPS = 6
GLOBAL_BATCH_SIZE = 8


class Remember(L.Callback):
    """Keeps what was logged in each optimiser step."""

    def __init__(self):
        self.logged = []

    def on_train_start(self, trainer, *_):
        self.num_steps = trainer.global_step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step > self.num_steps:
            self.num_steps = trainer.global_step
            self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def trace(self):
        return [[row["train/loss"], row["train/gradient_norm"]] for row in self.logged]


ADAMW = partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.0)
# In float32, so that sums in another order change little.
MUON = partial(ByRole, matrix=partial(Muon, lr=1e-2, dtype="float32"), other=ADAMW)


def build(module_class=GenerativeModule, optimizer=ADAMW):
    torch.manual_seed(0)
    backbone = ZigMa(1, 8, 8, patch_size=4, width=16, depth=2, mixers=Mamba(state_size=4), num_classes=10)
    return module_class(backbone, Objective(), optimizer=optimizer, lr_schedule=Constant(3))


def train(
    folder,
    module=None,
    callbacks=(),
    ckpt_path=None,
    batch_size=GLOBAL_BATCH_SIZE,
    data=None,
    save_every=NUM_STEPS // 2,
    **options,
):
    """Train and save folder/step=N.ckpt and last.ckpt; returns the trainer and what it has logged."""
    remember = Remember()
    checkpoints = L.pytorch.callbacks.ModelCheckpoint(
        folder, filename="{step}", every_n_train_steps=save_every, save_top_k=-1, save_last="link"
    )
    defaults = {"max_steps": NUM_STEPS, "log_every_n_steps": 1, "limit_val_batches": 0}
    trainer = L.Trainer(
        default_root_dir=folder,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        gradient_clip_val=0.5,
        callbacks=[EMA(decay=0.5, snapshot_every_n_steps=3), *callbacks, remember, checkpoints],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        **(defaults | options),
    )
    module = build() if module is None else module
    trainer.fit(module, datamodule=data or Digits(batch_size=batch_size), ckpt_path=ckpt_path)
    return trainer, remember
