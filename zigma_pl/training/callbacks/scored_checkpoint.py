"""Loading the checkpoint to score, and describing its training for the record."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import lightning as L

from zigma_pl.core.files import sha256
from zigma_pl.evaluation.protocol import gflops_of
from zigma_pl.training.callbacks.throughput import Throughput
from zigma_pl.training.callbacks.training_totals import TrainingTotals
from zigma_pl.training.checkpoints.io import Weights, weights_of
from zigma_pl.training.checkpoints.newest import log_folder_of
from zigma_pl.training.module import GenerativeModule

Found = TypeVar("Found", bound=L.Callback)


@dataclass(frozen=True)
class LoadedCheckpoint:
    """The loaded checkpoint.

    path: path as passed.
    sha256: hash of the file.
    steps: optimiser steps.
    """

    path: str
    sha256: str
    steps: int


def take_weights(
    trainer: L.Trainer, module: GenerativeModule, checkpoint: dict[str, Any], weights: Weights
) -> LoadedCheckpoint:
    """Load the selected weights into the module; the checkpoint's `state_dict`, the average, is already loaded.

    Raises:
        UserError: the checkpoint has no average.
    """
    path = str(trainer.ckpt_path)
    stored = weights_of(checkpoint, weights, path, "score the raw weights with --scorer.weights raw")
    if stored is not checkpoint["state_dict"]:
        module.load_state_dict(stored)
    return LoadedCheckpoint(path, sha256(Path(path)), int(checkpoint["global_step"]))


def describe_training(trainer: L.Trainer, module: GenerativeModule, checkpoint: LoadedCheckpoint) -> dict[str, Any]:
    """Return what is known about the training; None for values that the checkpoint does not contain."""
    log_folder = log_folder_of(Path(checkpoint.path))
    config = None if log_folder is None else log_folder / "config.yaml"
    totals, throughput = callback_of(trainer, TrainingTotals), callback_of(trainer, Throughput)
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
        "gflops": gflops_of(module.backbone),
        "memory_gb": round(peak_gib * 2**30 / 1e9, 3) if peak_gib else None,
    }


def callback_of(trainer: L.Trainer, kind: type[Found]) -> Found | None:
    """Return a trainer's first callback of a class, None if there is none."""
    callbacks: Sequence[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)
