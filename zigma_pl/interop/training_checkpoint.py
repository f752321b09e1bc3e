"""The model in a training checkpoint, built from nothing but the checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zigma_pl.checkpoints.content import check_finite
from zigma_pl.checkpoints.io import Weights, weights_of
from zigma_pl.errors import UserError
from zigma_pl.interop.described import ClassOptions
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
    seed = options.get("seed") or 0
    if not isinstance(seed, int):
        raise UserError(f"{path} has the seed {seed!r:.100}, which is no whole number: export another checkpoint")
    sampling = read_sampling(
        options.get("objective") or {},
        _as_described(options.get("sampler") or {"class_path": ODESampler.__name__}, "sampler", path),
        options.get("guidance") or {},
        path,
    )
    described = _as_described(options["backbone"], "backbone", path)
    stored = weights_of(checkpoint, weights, path, "--weights raw")
    other = "another checkpoint" if weights == "raw" else "another checkpoint, or the raw weights (--weights raw)"
    check_finite(stored, f"{path}, the {weights} weights", f"export {other}")
    own_weights = {name.removeprefix(PREFIX): value for name, value in stored.items() if name.startswith(PREFIX)}
    backbone = build_backbone(described.class_name, described.options, own_weights, path)
    fit_weights(backbone, own_weights, path)
    return GenerativeModule(backbone, **sampling, seed=seed).eval()


def _as_described(given: Any, what: str, path: Path) -> ClassOptions:
    """Turn the command line's class_path and init_args into a class's name and options."""
    described = given if isinstance(given, Mapping) else {}
    class_path, init_args = described.get("class_path"), described.get("init_args") or {}
    if not isinstance(class_path, str) or not isinstance(init_args, Mapping):
        raise UserError(f"{path}: hyper_parameters.{what} is no class_path with init_args: use another checkpoint")
    package, _, name = class_path.rpartition(".")
    own = package in ("", "zigma_pl") or package.startswith("zigma_pl.")
    return ClassOptions.of(name if own else class_path, init_args)
