"""A short training run that can be killed in every stage of saving."""

import os
import random
import signal
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import torch

from zigma_pl.backbones import ZigMa
from zigma_pl.data import Digits
from zigma_pl.interpolant import Objective
from zigma_pl.mixers import Mamba
from zigma_pl.optimizers import Constant
from zigma_pl.training.callbacks import checkpoint as checkpoint_module
from zigma_pl.training.callbacks.checkpoint import Checkpoint
from zigma_pl.training.callbacks.ema import EMA
from zigma_pl.training.callbacks.training_totals import TrainingTotals
from zigma_pl.training.checkpoints.io import WholeFileIO
from zigma_pl.training.checkpoints.newest import LAST_LINK, newest_checkpoint
from zigma_pl.training.checkpoints.restoring import CheckedConnector
from zigma_pl.training.module import GenerativeModule


class Noisy(GenerativeModule):
    """Scales its loss by what it draws from every source of random numbers, as a network with dropout would."""

    def training_step(self, batch, batch_idx):
        of_numpy = float(np.random.rand())  # noqa: NPY002  the global numbers are what is tested
        return super().training_step(batch, batch_idx) * (random.random() + of_numpy + torch.rand(()))

    def validation_step(self, batch, batch_idx):
        torch.rand(batch_idx + 1)
        super().validation_step(batch, batch_idx)


def build(objective=None, learning_rate=1e-2, **options):
    L.seed_everything(0, verbose=False)
    sizes = {"patch_size": 4, "width": 16, "depth": 2, "mixers": Mamba(state_size=4), "num_classes": 10}
    adamw = partial(torch.optim.AdamW, lr=learning_rate, weight_decay=0.0)
    return Noisy(
        ZigMa(1, 8, 8, **{**sizes, **options}), objective or Objective(), optimizer=adamw, lr_schedule=Constant(3)
    )


def trainer_for(folder, max_steps, *callbacks, **options):
    trainer = L.Trainer(
        default_root_dir=folder,
        max_steps=max_steps,
        max_epochs=options.pop("max_epochs", -1),
        accelerator="cpu",
        logger=False,
        callbacks=[EMA(decay=0.5), TrainingTotals(), Checkpoint(every_n_train_steps=2), *callbacks],
        plugins=[WholeFileIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **{"val_check_interval": 4, "check_val_every_n_epoch": None, "limit_val_batches": 2, **options},
    )
    trainer._checkpoint_connector = CheckedConnector(trainer)  # as the command line does
    return trainer


def train(folder, max_steps, *callbacks, **options):
    """Train, from the newest checkpoint if there is one."""
    trainer = trainer_for(folder, max_steps, *callbacks, **options)
    last = newest_checkpoint(Path(folder, "checkpoints")).path
    trainer.fit(build(), datamodule=Digits(batch_size=4), ckpt_path=last)
    return trainer


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def before(function):
    def dying(*arguments, **options):
        die()

    return dying


def after(function):
    def dying(*arguments, **options):
        function(*arguments, **options)
        die()

    return dying


def half_written(save):
    def dying(content, file):
        save(content, file)
        file.flush()
        os.ftruncate(file.fileno(), file.tell() // 2)
        die()

    return dying


def of_names(wanted, wrapper):
    """Wrap a method of paths for those targets alone whose name is wanted."""

    def wrap(function):
        return lambda path, target: (wrapper(function) if wanted(Path(target).name) else function)(path, target)

    return wrap


def is_checkpoint(name):
    return name.endswith(".ckpt") and name != LAST_LINK


STAGES = {
    "before writing": (torch, "save", before),
    "half written": (torch, "save", half_written),
    "before the rename": (Path, "replace", of_names(is_checkpoint, before)),
    "after the rename": (Path, "replace", of_names(is_checkpoint, after)),
    "before the link": (checkpoint_module, "point_last_to", before),
    "within the link": (Path, "replace", of_names(LAST_LINK.__eq__, before)),
    "after the link": (checkpoint_module, "point_last_to", after),
    "before the pruning": (WholeFileIO, "remove_checkpoint", before),
    "after the pruning": (WholeFileIO, "remove_checkpoint", after),
}


class DieWhileSaving(L.Callback):
    """Dies in the stage of saving that is asked for, after so many steps."""

    def __init__(self, stage, step):
        self.stage, self.step = stage, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            owner, name, wrap = STAGES[self.stage]
            setattr(owner, name, wrap(getattr(owner, name)))


def run(folder, max_steps, stage=None, step=None):
    """Train, and die in this stage of saving after this step."""
    train(folder, max_steps, *([DieWhileSaving(stage, step)] if stage else []))
