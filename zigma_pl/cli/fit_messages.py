"""Messages of `fit`: missing files at the start, and where the results are at the end."""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
from jsonargparse import Namespace

from zigma_pl.core.errors import UserError
from zigma_pl.core.shipped import shipped_file
from zigma_pl.data.from_options import missing_parts
from zigma_pl.suite.runs.experiment_files import ExperimentFile, overlay_of
from zigma_pl.training.callbacks.checkpoint import Checkpoint
from zigma_pl.training.checkpoints.newest import LAST_LINK
from zigma_pl.training.checkpoints.run_folder import run_folder


@contextmanager
def all_missing_at_once(options: Namespace) -> Iterator[None]:
    """Turn the error about one missing file into one that lists all, and the command that works without them.

    Args:
        options: the options of `fit`.
    """
    try:
        yield
    except UserError as error:
        found = missing_parts(options.data)
        if str(error) not in found:
            raise
        listed = found[0] if len(found) == 1 else "; ".join(f"({n}) {text}" for n, text in enumerate(found, 1))
        raise UserError(f"{listed}{_without_them(options)}") from error


def _without_them(options: Namespace) -> str:
    """Return a sentence with the command that trains on synthetic data, or "" if there is no config for it."""
    if not options.config or options.data.init_args.get("synthetic", True):
        return ""
    experiment = Path(str(options.config[0]))
    smoke = shipped_file("configs/scale/smoke.yaml")
    overlay = overlay_of(ExperimentFile(experiment), "smoke", smoke.parent) or smoke
    files = shlex.join([str(experiment), "--config", _shown(overlay)])
    return f". To train on synthetic data instead: python -m zigma_pl fit --config {files}"


def closing_lines(trainer: L.Trainer) -> list[str]:
    """Return lines with the files of a run and the command that samples. Call it in every process."""
    folder = run_folder(trainer)
    checkpoints = [callback.folder for callback in trainer.checkpoint_callbacks if isinstance(callback, Checkpoint)]
    checkpoint, config = checkpoints[0] / LAST_LINK, folder / "config.yaml"
    if not (checkpoint.is_file() and config.is_file()):  # for example with trainer.fast_dev_run
        return []
    previews = sorted((folder / "previews").glob("step_*"))
    command = shlex.join(["--config", _shown(config), "--ckpt_path", _shown(checkpoint)])
    return [
        f"log folder: {_shown(folder)}",
        f"checkpoint: {_shown(checkpoint)}",
        *(f"preview: {_shown(path)}" for path in previews[-1:]),
        f"to sample: python -m zigma_pl predict {command}",
    ]


def _shown(path: Path) -> str:
    """Return a path, relative to the working directory if it is below it."""
    absolute, here = path.absolute(), Path.cwd()
    return os.path.relpath(absolute, here) if absolute.is_relative_to(here) else str(path)
