"""Parts of a record besides scores and sampling: data, model and machine."""

import logging
from importlib.metadata import version
from typing import Any

import torch

from zigma_pl.core.errors import UserError
from zigma_pl.core.machine import describe_machine
from zigma_pl.core.processes import world_size
from zigma_pl.core.version import __version__
from zigma_pl.data.base import ImageDataModule
from zigma_pl.models.backbones.base import Backbone

log = logging.getLogger(__name__)


def describe_data(datamodule: ImageDataModule, note: str | None) -> dict[str, Any]:
    """Return the data set that samples are compared with, and a note on it."""
    synthetic = bool(getattr(datamodule, "synthetic", False))
    return {"dataset": type(datamodule).__name__, "standin": synthetic, "note": note}


def gflops_of(backbone: Backbone) -> float | None:
    """Return the operations of one call for one sample, in 10^9; None for a custom backbone with an unknown op."""
    from zigma_pl.models.flops import count_flops  # builds tables of ops

    try:
        return count_flops(backbone).total / 1e9
    except UserError as error:  # the record is still useful without this number
        log.warning(f"no GFLOPs in the record: {error}")
        return None


def describe_machine_and_versions(device: torch.device) -> dict[str, Any]:
    """Return device, number of processes, versions, date and commit, which is None without git."""
    machine = describe_machine(device)
    commit = None if machine["commit"] == "unknown" else machine["commit"]
    packages = {name: version(name) for name in ("lightning", "numpy")}
    return {**machine, "processes": world_size(), **packages, "zigma_pl": __version__, "commit": commit}
