"""What a record says beside the scores: the checkpoint and its training, and the machine."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import lightning as L

from zigma_pl.backbones.base import Backbone
from zigma_pl.benchmarks.machine import describe_machine
from zigma_pl.callbacks.throughput import Throughput
from zigma_pl.callbacks.training_totals import TrainingTotals
from zigma_pl.checkpoints.io import Weights, weights_of
from zigma_pl.checkpoints.newest import log_folder_of
from zigma_pl.errors import UserError
from zigma_pl.files import sha256
from zigma_pl.module import GenerativeModule
from zigma_pl.version import __version__

log = logging.getLogger(__name__)

Found = TypeVar("Found", bound=L.Callback)


@dataclass(frozen=True)
class LoadedCheckpoint:
    """What a checkpoint says of itself.

    path: as given.
    sha256: of the file.
    steps: optimiser steps.
    """

    path: str
    sha256: str
    steps: int


def take_weights(
    trainer: L.Trainer, module: GenerativeModule, checkpoint: dict[str, Any], weights: Weights
) -> LoadedCheckpoint:
    """Put the weights that are asked for in the module; a checkpoint's `state_dict`, the average, is there already.

    Raises:
        UserError: the checkpoint has no average.
    """
    path = str(trainer.ckpt_path)
    stored = weights_of(checkpoint, weights, path, "score the weights themselves: --scorer.weights raw")
    if stored is not checkpoint["state_dict"]:
        module.load_state_dict(stored)
    return LoadedCheckpoint(path, sha256(Path(path)), int(checkpoint["global_step"]))


def describe_training(trainer: L.Trainer, module: GenerativeModule, checkpoint: LoadedCheckpoint) -> dict[str, Any]:
    """Return what is known of the training; None for what the checkpoint does not tell."""
    log_folder = log_folder_of(Path(checkpoint.path))
    config = None if log_folder is None else log_folder / "config.yaml"
    totals, throughput = _callback(trainer, TrainingTotals), _callback(trainer, Throughput)
    counted = totals is not None and totals.samples_seen > 0
    peak_gib = 0.0 if throughput is None else throughput.peak_memory_gib
    return {
        "steps": checkpoint.steps,
        "samples_seen": totals.samples_seen if totals is not None and counted else None,
        "seconds": round(totals.seconds, 3) if totals is not None and counted else None,
        "config": str(config) if config is not None and config.is_file() else None,
        "checkpoint": checkpoint.path,
        "checkpoint_sha256": checkpoint.sha256,
        "log_folder": None if log_folder is None else str(log_folder),
        "parameters": module.backbone.num_parameters(),
        "gflops": _gflops(module.backbone),
        "memory_gb": round(peak_gib * 2**30 / 1e9, 3) if peak_gib else None,
    }


def _callback(trainer: L.Trainer, kind: type[Found]) -> Found | None:
    callbacks: Sequence[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)


def _gflops(backbone: Backbone) -> float | None:
    """Return the operations of one call for one sample, in 10^9; None for somebody's backbone with an unknown op."""
    from zigma_pl.flops import count_flops  # builds tables of ops

    try:
        return count_flops(backbone).total / 1e9
    except UserError as error:  # a record is worth more than this number of it
        log.warning(f"no GFLOPs in the record: {error}")
        return None


def describe_machine_and_versions(trainer: L.Trainer, module: GenerativeModule) -> dict[str, Any]:
    """Return device, number of processes, versions, date and commit, which is None outside of git."""
    machine = describe_machine(module.device)
    commit = None if machine["commit"] == "unknown" else machine["commit"]
    packages = {name: version(name) for name in ("lightning", "numpy")}
    return {**machine, "processes": trainer.world_size, **packages, "zigma_pl": __version__, "commit": commit}
