"""Models saved as a folder: model.safetensors (weights) and config.json (how to build and sample). No code is saved."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from safetensors.torch import save
from torch import Tensor

from zigma_pl.core.class_paths import PACKAGE, NotAllowed, build_described, packages_named, recorded
from zigma_pl.core.errors import UserError
from zigma_pl.core.files import sha256, written_whole
from zigma_pl.core.records import one_line, problems, read_record, write_record
from zigma_pl.interop.described import REMEDY, Description, ModelConfig
from zigma_pl.interop.generation import PretrainedModel
from zigma_pl.interop.weights_file import read_tensors, stored_shapes
from zigma_pl.interpolant import Objective
from zigma_pl.interpolant.samplers import Guidance, Sampler
from zigma_pl.models.backbones import Backbone
from zigma_pl.models.backbones.migration import migrated_options, migrated_weights
from zigma_pl.training.checkpoints.content import check_finite
from zigma_pl.training.module import GenerativeModule, mismatch
from zigma_pl.training.optimizers.roles import DECAYED_ROLES, parameter_roles

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
Built = TypeVar("Built")


def save_pretrained(
    model: GenerativeModule | Backbone,
    folder: str | Path,
    about: Mapping[str, Any] | None = None,
    *,
    matrix_dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a model's weights and config to `folder`; return the folder.

    config.json is written last and holds the hash of the weights. An interrupted export, or weights and config of two
    different exports, are therefore rejected when they are read.

    Args:
        model: a GenerativeModule, which is saved with objective, sampler, guidance, seed and `trained_on`, or only a
            backbone. Classes of other packages are saved by their import paths.
        folder: created if missing; existing model.safetensors and config.json are replaced.
        about: more fields of config.json as plain values: `training` (step and kind of weights), and `class_names` and
            `data` (class and encoders of the data module) to replace those of the model's `trained_on`.
        matrix_dtype: dtype of the stored matrices. float16 halves the file and rounds to 1 part in 2,000. Norms,
            biases, A_log, D and embedding tables stay float32, and reading returns float32 for all.

    Raises: UserError if a class cannot be imported, an option is no plain value, or a field in `about` is invalid.
    """
    folder = Path(folder)
    backbone = model.backbone if isinstance(model, GenerativeModule) else model
    description: dict[str, Any] = {
        "backbone": recorded(backbone, "backbone"),
        **(describe_sampling(model) if isinstance(model, GenerativeModule) else {}),
        **(about or {}),
    }
    dtypes = {name: matrix_dtype for name, role in parameter_roles(backbone).items() if role in DECAYED_ROLES}
    weights = {
        name: value.detach().to("cpu", dtypes.get(name, value.dtype)).contiguous()
        for name, value in backbone.state_dict().items()
    }
    check_finite(weights, f"the weights to be saved to {folder}", "save another checkpoint")
    content = save(weights, metadata={"format": "pt"})
    description["weights_sha256"] = hashlib.sha256(content).hexdigest()
    try:
        config = ModelConfig.model_validate_json(json.dumps(description))
    except (ValidationError, TypeError) as error:
        problem = problems(error) if isinstance(error, ValidationError) else error
        raise UserError(f"{folder / CONFIG_NAME} cannot be written: {problem}") from error
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(folder / WEIGHTS_NAME) as file:
        file.write(content)
    write_record(config, folder / CONFIG_NAME)
    return folder


def from_pretrained(
    folder: str | Path, *, train: bool = False, allow_imports: Sequence[str] = (), **options: Any
) -> PretrainedModel:
    """Load the model that `save_pretrained` or `python -m zigma_pl export` wrote, on the CPU.

    `from_pretrained(folder).generate("a person with red hair", num=4)` returns images.

    Args:
        folder: folder with model.safetensors and config.json.
        train: return the model in training mode, for fine-tuning, instead of evaluation mode. A training starts with a
            new optimiser.
        allow_imports: other packages whose classes config.json may name; they are imported.
        options: options of `GenerativeModule`, such as `optimizer`, that replace those in config.json.

    Raises: UserError if a file is missing, unreadable, truncated or of an unknown format version, a class is not
        allowed, weights and config do not match, or the folder holds only a backbone (see `load_backbone`).
    """
    path = Path(folder) / CONFIG_NAME
    config = read_config(folder)
    if config.objective is None:
        raise UserError(
            f"{path} describes only a backbone, without the objective that sampling needs: load it with "
            "zigma_pl.load_backbone(folder) and pass it to GenerativeModule with the objective it was trained on"
        )
    assert config.sampler is not None
    assert config.guidance is not None
    assert config.seed is not None
    sampling = read_sampling(config.objective, config.sampler, config.guidance, path, allow_imports)
    backbone = _load_backbone(folder, config, allow_imports)
    model = PretrainedModel(backbone, **{**sampling, "seed": config.seed, **options})
    model.trained_on = trained_on(config)
    model.allow_imports = tuple(allow_imports)
    return model.train(train)


def load_backbone(folder: str | Path, *, allow_imports: Sequence[str] = ()) -> Backbone:
    """Load only the backbone of a folder, on the CPU and in evaluation mode.

    Raises: UserError as `from_pretrained`.
    """
    return _load_backbone(folder, read_config(folder), allow_imports).eval()


def load_weights(folder: str | Path) -> dict[str, Tensor]:
    """Return the weights of a folder's backbone by name.

    Raises: UserError as `from_pretrained`.
    """
    return migrated_weights(_read_weights(folder, read_config(folder)))


def read_config(folder: str | Path) -> ModelConfig:
    """Read the folder's config.json.

    Raises: UserError if it is missing, unreadable, malformed, or of an unknown format version.
    """
    return read_record(ModelConfig, Path(folder) / CONFIG_NAME)


def trained_on(config: ModelConfig) -> dict[str, Any]:
    """Return class names and data module of a config, in the form of `GenerativeModule.trained_on`."""
    found = {
        "class_names": config.class_names,
        "data": config.data and config.data.model_dump(exclude_none=True),
    }
    return {name: value for name, value in found.items() if value}


def _load_backbone(folder: str | Path, config: ModelConfig, allow_imports: Sequence[str]) -> Backbone:
    stored = stored_shapes(Path(folder) / WEIGHTS_NAME, REMEDY)
    backbone = build_backbone(config.backbone, stored, Path(folder) / CONFIG_NAME, allow_imports)
    fit_weights(backbone, _read_weights(folder, config), Path(folder) / WEIGHTS_NAME)
    return backbone


def _read_weights(folder: str | Path, config: ModelConfig) -> dict[str, Tensor]:
    path = Path(folder) / WEIGHTS_NAME
    weights = read_tensors(path, REMEDY)
    check_finite(weights, path, "export another checkpoint")
    if config.weights_sha256 not in (None, sha256(path)):
        raise UserError(f"{path} is damaged, or {CONFIG_NAME} belongs to other weights: {REMEDY}")
    return weights


def build_backbone(
    description: Description, stored: Mapping[str, Tensor], source: Path, allow_imports: Sequence[str] = ()
) -> Backbone:
    """Build a backbone after checking that its weights fit.

    The check builds the backbone on the meta device, which allocates no memory. It is skipped if classes of other
    packages take part, whose code may not support the meta device.

    Args:
        description: class and options.
        stored: weights by name; only their shapes are used.
        source: file to name in errors.
        allow_imports: other packages whose classes may be used.

    Raises: UserError if a class is not allowed, an option is invalid, or the weights do not fit.
    """
    depth = description.init_args.get("depth")
    if isinstance(depth, int) and depth > max(
        100, len(stored)
    ):  # building so many layers takes long, even on the meta device
        raise UserError(f"{source}: depth is {depth}, but there are only {len(stored)} tensors: {REMEDY}")
    description = _migrated(description, source)
    if not packages_named(description.model_dump()):
        with torch.device("meta"):
            on_meta = build(description, Backbone, f"{source}: backbone")  # type: ignore[type-abstract]
        _check_fit(on_meta, migrated_weights(stored), source)
    return build(description, Backbone, f"{source}: backbone", allow_imports)  # type: ignore[type-abstract]


def _migrated(description: Description, source: Path) -> Description:
    """Return a description with the current names of options, for a backbone of this package."""
    package, _, name = description.class_path.rpartition(".")
    if package.split(".")[0] not in ("", PACKAGE):
        return description
    try:
        return description.model_copy(update={"init_args": migrated_options(name, description.init_args)})
    except (TypeError, ValueError, LookupError) as error:
        raise UserError(f"{source}: invalid backbone ({one_line(str(error))}): {REMEDY}") from error


def fit_weights(backbone: Backbone, weights: Mapping[str, Tensor], source: Path) -> None:
    """Load weights into a backbone.

    Raises: UserError that names the first parameters that are missing, unknown or have another shape.
    """
    weights = migrated_weights(weights)
    _check_fit(backbone, weights, source)
    backbone.load_state_dict(weights)


def _check_fit(backbone: Backbone, weights: Mapping[str, Tensor], source: Path) -> None:
    wrong = mismatch(backbone.state_dict(), weights)
    if wrong is not None:
        raise UserError(
            f"{source}: the weights do not fit the {type(backbone).__name__} in {CONFIG_NAME}: {wrong}: {REMEDY}"
        )


def describe_sampling(model: GenerativeModule) -> dict[str, Any]:
    """Return objective, sampler, guidance, seed and `trained_on` of a module as plain values, without its captions.

    Captions of the training data may be private, and generating needs none.
    """
    return {
        "objective": recorded(model.objective, "objective"),
        "sampler": recorded(model.sampler, "sampler"),
        "guidance": recorded(model.guidance, "guidance"),
        "seed": model.seed,
        **{name: value for name, value in model.trained_on.items() if name != "captions"},
    }


def read_sampling(
    objective: Description, sampler: Description, guidance: Description, source: Path, allow_imports: Sequence[str] = ()
) -> dict[str, Any]:
    """Build objective, sampler and guidance of a GenerativeModule; errors name the file `source`."""
    return {
        "objective": build(objective, Objective, f"{source}: objective", allow_imports),
        "sampler": build(sampler, Sampler, f"{source}: sampler", allow_imports),  # type: ignore[type-abstract]
        "guidance": build(guidance, Guidance, f"{source}: guidance", allow_imports),
    }


def build(description: Description, base: type[Built], what: str, allow_imports: Sequence[str] = ()) -> Built:
    """Build an object from its description.

    Raises: UserError that begins with `what`; see `zigma_pl.core.class_paths.build_described`.
    """
    try:
        return build_described(description.model_dump(), base, allow_imports)
    except NotAllowed as error:
        raise UserError(f"{what}: {error}") from error
    except UserError as error:
        raise UserError(f"{what} is invalid ({error}): {REMEDY}") from error
