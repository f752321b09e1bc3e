"""A model as a folder: model.safetensors (weights) and config.json (how to build and sample it). Nothing executes."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save
from torch import Tensor

from zigma_pl.backbones import Backbone, DiT, ParallelMamba, UViT, VisionMamba, ZigMa
from zigma_pl.backbones.migration import migrated_weights
from zigma_pl.checkpoints.content import check_finite
from zigma_pl.errors import UserError
from zigma_pl.files import sha256, written_whole
from zigma_pl.interop.described import REMEDY, ClassOptions, ModelConfig, build, known_class, known_name, options_of
from zigma_pl.interop.weights_file import read_tensors, stored_shapes
from zigma_pl.interpolant import Objective
from zigma_pl.module import GenerativeModule, mismatch
from zigma_pl.optimizers.roles import DECAYED_ROLES, parameter_roles
from zigma_pl.records import problems, read_record, write_record
from zigma_pl.samplers import Guidance, ODESampler, Sampler, SDESampler

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
BACKBONES: dict[str, type[Backbone]] = {
    backbone.__name__: backbone for backbone in (ZigMa, VisionMamba, ParallelMamba, DiT, UViT)
}
SAMPLERS: dict[str, type[Sampler]] = {sampler.__name__: sampler for sampler in (ODESampler, SDESampler)}


def save_pretrained(
    model: GenerativeModule | Backbone,
    folder: str | Path,
    about: Mapping[str, Any] | None = None,
    *,
    matrix_dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a model's weights and config to `folder`, made when missing; return the folder.

    config.json is written last and holds the hash of the weights, so that half of an interrupted export, or weights
    and config of two of them, are refused when they are read.

    Args:
        model: of a GenerativeModule, objective, sampler, guidance and seed are kept too; of a backbone, itself alone.
        folder: where to write; files of these names are replaced.
        about: more to keep in config.json, plain values by name: `training` (step and weights) and `data` (class and
            encoders of the data set, which `python -m zigma_pl sample` reads).
        matrix_dtype: in which matrices are stored: float16 takes half the room and rounds to 1 part in 2,000. Norms,
            biases, A_log, D and embedding tables stay float32, and all is float32 again when it is read.

    Raises: UserError for a backbone or sampler of a class that is not this package's, or `about` of other types.
    """
    folder = Path(folder)
    backbone = model.backbone if isinstance(model, GenerativeModule) else model
    description: dict[str, Any] = {
        "backbone": known_name(backbone, BACKBONES),
        "config": backbone.config,
        **(describe_sampling(model) if isinstance(model, GenerativeModule) else {}),
        **(about or {}),
    }
    dtypes = {name: matrix_dtype for name, role in parameter_roles(backbone).items() if role in DECAYED_ROLES}
    weights = {
        name: value.detach().to("cpu", dtypes.get(name, value.dtype)).contiguous()
        for name, value in backbone.state_dict().items()
    }
    check_finite(weights, f"the weights to be saved to {folder}", "save those of another checkpoint")
    content = save(weights, metadata={"format": "pt"})
    try:
        config = ModelConfig(**description, weights_sha256=hashlib.sha256(content).hexdigest())
    except ValidationError as error:
        raise UserError(f"{folder / CONFIG_NAME} cannot be written: {problems(error)}") from error
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(folder / WEIGHTS_NAME) as file:
        file.write(content)
    write_record(config, folder / CONFIG_NAME)
    return folder


def from_pretrained(folder: str | Path) -> GenerativeModule:
    """Build the model that `save_pretrained` or `python -m zigma_pl export` wrote, on the CPU and in evaluation mode.

    `model.sample(Batch(None, sample_ids, conditions)).latents` draws from it as the run it comes from did.

    Raises: UserError when a file is missing, unreadable, truncated, of an unknown format version or another class,
        when weights and config do not fit, or when the folder holds a backbone alone; see `load_backbone`.
    """
    path = Path(folder) / CONFIG_NAME
    config = read_config(folder)
    if config.objective is None:
        raise UserError(
            f"{path} describes a backbone alone, without an objective to sample by: zigma_pl.load_backbone(folder) "
            "gives it, for a GenerativeModule with the objective it was trained on"
        )
    assert config.sampler is not None
    assert config.guidance is not None
    assert config.seed is not None
    sampling = read_sampling(config.objective, config.sampler, config.guidance, path)
    return GenerativeModule(_load_backbone(folder, config), **sampling, seed=config.seed).eval()


def load_backbone(folder: str | Path) -> Backbone:
    """Build the backbone of a folder alone, on the CPU and in evaluation mode.

    Raises: UserError as `from_pretrained`.
    """
    return _load_backbone(folder, read_config(folder))


def read_config(folder: str | Path) -> ModelConfig:
    """Return what the folder's config.json says.

    Raises: UserError when it is missing, unreadable, malformed, or of an unknown format version.
    """
    return read_record(ModelConfig, Path(folder) / CONFIG_NAME)


def _load_backbone(folder: str | Path, config: ModelConfig) -> Backbone:
    path, config_path = Path(folder) / WEIGHTS_NAME, Path(folder) / CONFIG_NAME
    stored = stored_shapes(path, REMEDY)
    backbone = build_backbone(config.backbone, config.config, stored, config_path)
    weights = read_tensors(path, REMEDY)
    fit_weights(backbone, weights, path)
    check_finite(weights, path, "export another checkpoint")
    if config.weights_sha256 not in (None, sha256(path)):
        raise UserError(f"{path} is damaged, or not what {CONFIG_NAME} was written with: {REMEDY}")
    return backbone.eval()


def build_backbone(name: str, options: Mapping[str, Any], stored: Mapping[str, Tensor], source: Path) -> Backbone:
    """Build a backbone of this package, once its weights are known to fit: first an outline without memory.

    Args:
        name: its class.
        options: of the constructor.
        stored: its weights by name, of which shapes alone are looked at.
        source: the file that an error names.

    Raises: UserError for a class or options that are not this package's, or other weights than that backbone has.
    """
    backbone_class, what = known_class(name, BACKBONES, source), f"{source}: config of {name}"
    depth = options.get("depth")
    if isinstance(depth, int) and depth > max(100, len(stored)):  # an outline of so many layers would take long
        raise UserError(f"{what}: depth is {depth}, but there are {len(stored)} tensors in all: {REMEDY}")
    with torch.device("meta"):
        outline = build(backbone_class, options, what, backbone_class.from_config)
    _check_fit(outline, migrated_weights(stored), source)
    return build(backbone_class, options, what, backbone_class.from_config)


def fit_weights(backbone: Backbone, weights: Mapping[str, Tensor], source: Path) -> None:
    """Load weights into a backbone.

    Raises: UserError that names the first parameters that are missing, unknown or of another shape.
    """
    weights = migrated_weights(weights)
    _check_fit(backbone, weights, source)
    backbone.load_state_dict(weights)


def _check_fit(backbone: Backbone, weights: Mapping[str, Tensor], source: Path) -> None:
    wrong = mismatch(backbone.state_dict(), weights)
    if wrong is not None:
        raise UserError(
            f"{source} is not of the {type(backbone).__name__} that is described with it: {wrong}: {REMEDY}"
        )


def describe_sampling(model: GenerativeModule) -> dict[str, Any]:
    """Return as plain values what sampling from a module needs beside its backbone."""
    sampler = ClassOptions.of(known_name(model.sampler, SAMPLERS), options_of(model.sampler))
    return {
        "objective": options_of(model.objective),
        "sampler": sampler,
        "guidance": asdict(model.guidance),
        "seed": model.seed,
    }


def read_sampling(
    objective: Mapping[str, Any], sampler: ClassOptions, guidance: Mapping[str, Any], source: Path
) -> dict[str, Any]:
    """Return GenerativeModule's objective, sampler and guidance from plain options; errors name the file `source`."""
    sampler_class = known_class(sampler.class_name, SAMPLERS, source)
    return {
        "objective": build(Objective, objective, f"{source}: objective"),
        "sampler": build(sampler_class, sampler.options, f"{source}: sampler"),
        "guidance": build(Guidance, guidance, f"{source}: guidance"),
    }
