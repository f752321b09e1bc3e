"""The model in a training checkpoint, built from nothing but the checkpoint, and weights to start training from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.core.records import problems
from zigma_pl.interop.described import Description
from zigma_pl.interop.folder import build_backbone, fit_weights, load_weights, read_config, read_sampling, trained_on
from zigma_pl.interop.generation import PretrainedModel
from zigma_pl.models.backbones.migration import migrated_weights
from zigma_pl.training.checkpoints.content import TRAINED_ON, check_finite
from zigma_pl.training.checkpoints.io import Weights, read_checkpoint, weights_of
from zigma_pl.training.module import GenerativeModule, mismatch

PREFIX = "backbone."  # of the backbone's parameters in the LightningModule


def model_of(
    checkpoint: Mapping[str, Any], weights: Weights, path: Path, allow_imports: Sequence[str] = ()
) -> PretrainedModel:
    """Build the model of a training checkpoint, in evaluation mode.

    Args:
        checkpoint: what `checkpoints.io.read_checkpoint` gave.
        weights: the average, or those that training goes on from.
        path: the file, for errors.
        allow_imports: packages, other than this one, whose classes may be used.

    Raises: UserError when the checkpoint is none of a training run from the command line, of a class that is not
        allowed, or without an average where that is asked for.
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
    usual = {"objective": "Objective", "sampler": "ODESampler", "guidance": "Guidance"}
    parts = {name: _described(options.get(name) or {}, name, path, class_path) for name, class_path in usual.items()}
    sampling = read_sampling(**parts, source=path, allow_imports=allow_imports)
    own_weights = _backbone_weights(checkpoint, weights, path, "--weights raw")
    backbone = build_backbone(_described(options["backbone"], "backbone", path), own_weights, path, allow_imports)
    fit_weights(backbone, own_weights, path)
    model = PretrainedModel(backbone, **sampling, seed=seed)
    model.trained_on = dict(checkpoint.get(TRAINED_ON, {}))
    model.allow_imports = tuple(allow_imports)
    return model.eval()


def initialise(model: GenerativeModule, path: str | Path, weights: Weights = "average") -> None:
    """Give a model, before it is trained, the weights of another of the same shape.

    What that one was trained on is kept where the model's own data set does not say.

    Args:
        model: its backbone gets the weights.
        path: folder of an exported model, or checkpoint of a training run.
        weights: which weights of a checkpoint to take; a folder holds one kind only.

    Raises: UserError, of one line, where the weights cannot be read or do not fit.
    """
    path = Path(path)
    if path.is_dir():
        found, known = load_weights(path), trained_on(read_config(path))
    else:
        checkpoint = read_checkpoint(path)
        found = migrated_weights(_backbone_weights(checkpoint, weights, path, "--init_weights raw"))
        known = checkpoint.get(TRAINED_ON, {})
    wrong = mismatch(model.backbone.state_dict(), found)
    if wrong is not None:
        raise UserError(
            f"{path} does not fit the {type(model.backbone).__name__} of these options: {wrong}: give the options of "
            "model.backbone that it was trained with"
        )
    model.backbone.load_state_dict(found)
    model.trained_on = {**known, **model.trained_on}


def _backbone_weights(checkpoint: Mapping[str, Any], weights: Weights, path: Path, otherwise: str) -> dict[str, Tensor]:
    stored = weights_of(checkpoint, weights, path, otherwise)
    other = "another checkpoint" if weights == "raw" else f"another checkpoint, or the raw weights ({otherwise})"
    check_finite(stored, f"{path}, the {weights} weights", f"take {other}")
    return {name.removeprefix(PREFIX): value for name, value in stored.items() if name.startswith(PREFIX)}


def _described(given: Any, what: str, path: Path, usual: str | None = None) -> Description:
    """Turn what the command line was given into a class path and options; options alone are those of `usual`."""
    if isinstance(given, Mapping) and "class_path" not in given and usual is not None:
        given = {"class_path": usual, "init_args": given}
    try:
        described = {name: given[name] for name in ("class_path", "init_args") if given.get(name) is not None}
        return Description.model_validate(described)
    except (ValidationError, AttributeError, TypeError, LookupError) as error:
        problem = problems(error) if isinstance(error, ValidationError) else "no class_path with init_args"
        raise UserError(
            f"{path}: hyper_parameters.{what} cannot be used ({problem}): use another checkpoint"
        ) from error
