"""The model in a training checkpoint, built from nothing but the checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zigma_pl.checkpoints.io import Weights, weights_of
from zigma_pl.errors import UserError
from zigma_pl.interop.folder import build_backbone, fit_weights, read_sampling
from zigma_pl.module import GenerativeModule
from zigma_pl.samplers import ODESampler

PREFIX = "backbone."  # of the backbone's parameters in the LightningModule


def model_of(checkpoint: Mapping[str, Any], weights: Weights, path: Path) -> GenerativeModule:
    """Build the model of a training checkpoint, in evaluation mode.

    Args:
        checkpoint: what `checkpoints.io.read_checkpoint` gave.
        weights: the average, or those that training goes on from.
        path: the file, for errors.

    Raises: UserError when the checkpoint is none of a training run from the command line, of another class, or without
        an average where that is asked for.
    """
    options = checkpoint.get("hyper_parameters", {})
    if not isinstance(options.get("backbone"), dict):
        raise UserError(
            f"{path} does not say how to build its backbone, because its run was started from Python: export the "
            "module there, by zigma_pl.save_pretrained(module, folder)"
        )
    sampling = read_sampling(
        {
            "objective": options.get("objective") or {},
            "sampler": _as_described(options.get("sampler") or {"class_path": ODESampler.__name__}),
            "guidance": options.get("guidance") or {"scale": 1.0, "interval": (0.0, 1.0)},
            "seed": options.get("seed", 0),
        },
        path,
    )
    given = _as_described(options["backbone"])
    backbone = build_backbone(given["class"], given["options"], path)
    stored = weights_of(checkpoint, weights, path, "--weights raw")
    own_weights = {name.removeprefix(PREFIX): value for name, value in stored.items() if name.startswith(PREFIX)}
    fit_weights(backbone, own_weights, path)
    return GenerativeModule(backbone, **sampling).eval()


def _as_described(given: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the command line's class_path and init_args into a class's name and options."""
    package, _, name = str(given.get("class_path")).rpartition(".")
    own = package in ("", "zigma_pl") or package.startswith("zigma_pl.")
    return {"class": name if own else given.get("class_path"), "options": dict(given.get("init_args") or {})}
