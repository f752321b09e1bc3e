"""A module and trainer that take no time, and what a scored run leaves."""

from functools import partial
from pathlib import Path

import lightning as L
import torch

from zigma_pl.backbones import ZigMa
from zigma_pl.interpolant import Objective
from zigma_pl.mixers import Mamba
from zigma_pl.samplers import Guidance, ODESampler
from zigma_pl.training.module import GenerativeModule

SIZE = {"patch_size": 4, "width": 16, "depth": 1, "mixers": Mamba(state_size=4)}


def build(clips=False, **options):
    torch.manual_seed(0)
    shape = {"in_channels": 3, "latent_frames": 3, "num_classes": 2} if clips else {"in_channels": 1, "num_classes": 10}
    backbone = ZigMa(latent_height=8, latent_width=8, **shape, **SIZE)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    given = {
        "sampler": ODESampler(num_steps=2),
        "guidance": Guidance(scale=2.0),
        "optimizer": partial(torch.optim.AdamW, lr=1e-2),
    } | options
    return GenerativeModule(backbone, Objective(), **given)


def trainer_for(folder, callbacks):
    return L.Trainer(
        default_root_dir=folder, max_steps=2, max_epochs=-1, accelerator="cpu", callbacks=callbacks, logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip


def chunks(folder):
    """Bytes of every chunk below a folder of samples, by name."""
    return {path.name: path.read_bytes() for path in sorted(Path(folder).rglob("chunk-*.npz"))}
