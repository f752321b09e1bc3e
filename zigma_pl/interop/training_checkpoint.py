"""Models and initial weights from training checkpoints; no config is needed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from pydantic import ValidationError
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.core.records import problems
from zigma_pl.interop.described import Description
from zigma_pl.interop.folder import build_backbone, fit_weights, load_weights, read_config, read_sampling, trained_on
from zigma_pl.interop.generation import PretrainedModel
from zigma_pl.models.backbones.migration import migrated_weights
from zigma_pl.training.callbacks.checkpoint_options import changes_since
from zigma_pl.training.checkpoints.content import OPTIONS, TRAINED_ON, check_finite
from zigma_pl.training.checkpoints.io import Weights, read_checkpoint, weights_of
from zigma_pl.training.module import GenerativeModule, mismatch

PREFIX = "backbone."  # prefix of the backbone's parameters in the LightningModule


def model_of(
    checkpoint: Mapping[str, Any], weights: Weights, path: Path, allow_imports: Sequence[str] = ()
) -> PretrainedModel:
    """Build the model of a training checkpoint, in evaluation mode.

    Args:
        checkpoint: contents, from `checkpoints.io.read_checkpoint`.
        weights: the average, or the raw weights.
        path: the file, for errors.
        allow_imports: other packages whose classes may be used.

    Raises: UserError if the checkpoint is not from a training run on the command line, a class is not allowed, or the
        average is requested and missing.
    """
    options = checkpoint.get("hyper_parameters", {})
    if not isinstance(options.get("backbone"), dict):
        raise UserError(
            f"{path} does not describe its backbone, because its run was started from Python: export the module there "
            "with zigma_pl.save_pretrained(module, folder)"
        )
    seed = 0 if options.get("seed") is None else options["seed"]
    if not isinstance(seed, int):
        raise UserError(f"{path}: seed {seed!r:.100} is not a whole number: export another checkpoint")
    defaults = {"objective": "Objective", "sampler": "ODESampler", "guidance": "Guidance"}
    parts = {name: _described(options.get(name), name, path, class_path) for name, class_path in defaults.items()}
    sampling = read_sampling(**parts, source=path, allow_imports=allow_imports)
    own_weights = _backbone_weights(checkpoint, weights, path, "--weights raw")
    backbone = build_backbone(_described(options["backbone"], "backbone", path), own_weights, path, allow_imports)
    fit_weights(backbone, own_weights, path)
    model = PretrainedModel(backbone, **sampling, seed=seed)
    model.trained_on = dict(checkpoint.get(TRAINED_ON, {}))
    model.allow_imports = tuple(allow_imports)
    return model.eval()


def initialise(model: GenerativeModule, path: str | Path, weights: Weights = "average") -> None:
    """Initialise the backbone of a model with the weights of another model of the same shapes.

    Entries of `trained_on` that the model does not have are copied from the other model. Another scan or objective is
    reported in a warning.

    Args:
        model: the model to initialise.
        path: folder of an exported model, or checkpoint of a training run.
        weights: averaged or raw weights of a checkpoint; a folder holds only one kind.

    Raises: UserError if the weights cannot be read or do not fit.
    """
    path = Path(path)
    if path.is_dir():
        config = read_config(path)
        found, known = load_weights(path), trained_on(config)
        objective = None if config.objective is None else config.objective.init_args
        options = {"scan": config.backbone.init_args.get("scan"), "objective": objective}
    else:
        checkpoint = read_checkpoint(path)
        found = migrated_weights(_backbone_weights(checkpoint, weights, path, "--init_weights raw"))
        known, options = checkpoint.get(TRAINED_ON, {}), checkpoint.get(OPTIONS, {})
    wrong = mismatch(model.backbone.state_dict(), found)
    if wrong is not None:
        raise UserError(
            f"{path} does not fit this {type(model.backbone).__name__} ({wrong}): set the options of model.backbone to "
            "those it was trained with"
        )
    changes = changes_since(options, model)
    if changes:
        rank_zero_warn(f"the weights of {path} were trained with other options: {', '.join(changes)}")
    model.backbone.load_state_dict(found)
    model.trained_on = {**known, **model.trained_on}


def _backbone_weights(checkpoint: Mapping[str, Any], weights: Weights, path: Path, otherwise: str) -> dict[str, Tensor]:
    stored = weights_of(checkpoint, weights, path, otherwise)
    other = "another checkpoint" if weights == "raw" else f"another checkpoint, or the raw weights ({otherwise})"
    check_finite(stored, f"{path}, the {weights} weights", f"use {other}")
    return {name.removeprefix(PREFIX): value for name, value in stored.items() if name.startswith(PREFIX)}


def _described(given: Any, what: str, path: Path, default: str | None = None) -> Description:
    """Return options of the command line as a description; options without a class path belong to class `default`."""
    given = {} if given is None else given
    if isinstance(given, Mapping) and "class_path" not in given and default is not None:
        given = {"class_path": default, "init_args": given}
    try:
        described = {name: given[name] for name in ("class_path", "init_args") if given.get(name) is not None}
        return Description.model_validate(described)
    except (ValidationError, AttributeError, TypeError, LookupError) as error:
        problem = problems(error) if isinstance(error, ValidationError) else "no class_path with init_args"
        raise UserError(f"{path}: hyper_parameters.{what} is invalid ({problem}): use another checkpoint") from error
