"""Snapshots of power-function averages in a run's folder, and averages of other widths reconstructed from them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_numbers, check_whole_numbers
from zigma_pl.training.checkpoints.content import POWER_AVERAGE, check_finite
from zigma_pl.training.checkpoints.io import WholeFileIO, read_checkpoint
from zigma_pl.training.checkpoints.newest import CHECKPOINT_FOLDER, newest_checkpoint
from zigma_pl.training.checkpoints.power_function import MAX_SIGMA_REL, Profile, combination

SNAPSHOT_FOLDER = "snapshots"  # subfolder of a log folder
MAX_ERROR = 0.2  # largest relative error of a reconstructed profile
_NAME = re.compile(r"step_(\d{8,15})_sigma_rel_(0\.\d{3})\.ckpt")
# What describes a run in its checkpoints, besides the weights.
_DESCRIPTION = ("epoch", "pytorch-lightning_version", "hyper_parameters", "hparams_name", "zigma_options", "trained_on")


def write_snapshot(run: Path, profile: Profile, averages: Mapping[str, Tensor]) -> None:
    """Write an average to a run's folder, in 16 bits.

    Raises: UserError if it cannot be written.
    """
    weights = {name: average.to("cpu", torch.float16) for name, average in averages.items()}
    content = {"state_dict": weights, "global_step": profile.step, POWER_AVERAGE: {"sigma_rel": profile.sigma_rel}}
    name = f"step_{profile.step:08d}_sigma_rel_{profile.sigma_rel:.3f}.ckpt"
    WholeFileIO().save_checkpoint(content, run / SNAPSHOT_FOLDER / name)


def snapshots_of(run: Path) -> dict[Profile, Path]:
    """Return the snapshots in a run's folder, by increasing step."""
    names = {path: _NAME.fullmatch(path.name) for path in (run / SNAPSHOT_FOLDER).glob("*.ckpt")}
    found = {Profile(int(name[1]), float(name[2])): path for path, name in names.items() if name}
    return {profile: found[profile] for profile in sorted(found) if profile.step and profile.sigma_rel}


def remove_later_snapshots(run: Path, step: int) -> None:
    """Remove snapshots of later steps, which a run that resumes from `step` writes again."""
    for profile, path in snapshots_of(run).items():
        if profile.step > step:
            path.unlink()


def reconstruct(run: Path, sigma_rel: float, step: int | None = None) -> tuple[dict[str, Any], float]:
    """Reconstruct a power-function average from a run's snapshots.

    Args:
        run: log folder of the run, with snapshots and a checkpoint.
        sigma_rel: width of the average.
        step: optimiser step at which the average ends, one of the snapshots'; the last one by default.

    Returns: content of a checkpoint without training state, and the relative error of the average's profile.

    Raises: UserError for an option out of range, if a file is missing or damaged, or if the error is too large.
    """
    check_numbers("average", above=0, most=MAX_SIGMA_REL, sigma_rel=sigma_rel)
    check_whole_numbers("average", step=step)
    snapshots = snapshots_of(run)
    if not snapshots:
        raise UserError(f"{run / SNAPSHOT_FOLDER} has no snapshots: train with --ema.snapshot_every_n_steps")
    steps = sorted({profile.step for profile in snapshots})
    if step is not None and step not in steps:
        raise UserError(
            f"--step {step}: {run} has no snapshot of this step: choose one of {', '.join(map(str, steps))}"
        )
    wanted = Profile(step or steps[-1], sigma_rel)
    profiles = [profile for profile in snapshots if profile.step <= wanted.step]
    coefficients, error = combination(profiles, wanted)
    if error > MAX_ERROR:
        raise UserError(
            f"the snapshots of {run} determine the average of sigma_rel {sigma_rel:g} at step {wanted.step} only with "
            f"an error of {error:.0%}: choose a sigma_rel closer to {' or '.join(_widths(profiles))}, or train with "
            "more frequent snapshots"
        )
    newest = newest_checkpoint(run / CHECKPOINT_FOLDER).path
    if newest is None:
        raise UserError(f"{run / CHECKPOINT_FOLDER} has no intact checkpoint, which describes the model")
    described = read_checkpoint(newest)
    weights = dict(described["state_dict"])
    averages: dict[str, Tensor] = {}
    for profile, coefficient in zip(profiles, coefficients, strict=True):
        path = snapshots[profile]
        stored = read_checkpoint(path)["state_dict"]
        check_finite(stored, path, "remove it to use the other snapshots")
        foreign = [name for name, value in stored.items() if name not in weights or value.shape != weights[name].shape]
        if foreign:
            raise UserError(f"{path} belongs to another model, as {newest} has no such {foreign[0]:.100}: remove it")
        for name, value in stored.items():
            averages.setdefault(name, torch.zeros(value.shape)).add_(value, alpha=float(coefficient))
    content = {name: described[name] for name in _DESCRIPTION if name in described}
    content |= {"state_dict": weights | averages, "global_step": wanted.step, POWER_AVERAGE: {"sigma_rel": sigma_rel}}
    content["callbacks"] = {}  # without the key, Lightning does not pass the checkpoint to callbacks
    return content, error


def _widths(profiles: list[Profile]) -> list[str]:
    return [f"{width:g}" for width in sorted({profile.sigma_rel for profile in profiles})]
