"""A model as a folder: model.safetensors (weights) and config.json (how to build and sample it). Nothing executes."""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from zigma_pl.backbones import Backbone, DiT, ParallelMamba, UViT, VisionMamba, ZigMa
from zigma_pl.checkpoints.content import check_finite
from zigma_pl.errors import UserError
from zigma_pl.files import sha256, written_whole
from zigma_pl.interpolant import Objective
from zigma_pl.module import GenerativeModule, mismatch
from zigma_pl.optimizers.roles import DECAYED_ROLES, parameter_roles
from zigma_pl.samplers import Guidance, ODESampler, Sampler, SDESampler

FORMAT_VERSION = 1
WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
BACKBONES: dict[str, type[Backbone]] = {
    backbone.__name__: backbone for backbone in (ZigMa, VisionMamba, ParallelMamba, DiT, UViT)
}
SAMPLERS: dict[str, type[Sampler]] = {sampler.__name__: sampler for sampler in (ODESampler, SDESampler)}
Built = TypeVar("Built")


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
        about: more to keep in config.json, which nothing reads back: plain values by name.
        matrix_dtype: in which matrices are stored: float16 takes half the room and rounds to 1 part in 2,000. Norms,
            biases, A_log, D and embedding tables stay float32, and all is float32 again when it is read.

    Raises: UserError for a backbone or sampler of a class that is not this package's.
    """
    folder = Path(folder)
    backbone = model.backbone if isinstance(model, GenerativeModule) else model
    description = {
        "format_version": FORMAT_VERSION,
        "backbone": _known_name(backbone, BACKBONES),
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
    description["weights_sha256"] = hashlib.sha256(content).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(folder / WEIGHTS_NAME) as file:
        file.write(content)
    with written_whole(folder / CONFIG_NAME) as file:
        file.write((json.dumps(description, indent=2) + "\n").encode())
    return folder


def from_pretrained(folder: str | Path) -> GenerativeModule:
    """Build the model that `save_pretrained` or `python -m zigma_pl export` wrote, on the CPU and in evaluation mode.

    `model.sample(Batch(None, sample_ids, condition)).latents` draws from it as the run it comes from did.

    Raises: UserError when a file is missing, unreadable, truncated, of an unknown format version or another class,
        when weights and config do not fit, or when the folder holds a backbone alone; see `load_backbone`.
    """
    path = Path(folder) / CONFIG_NAME
    description = _read_config(path)
    if "objective" not in description:
        raise UserError(
            f"{path} describes a backbone alone, without an objective to sample by: zigma_pl.load_backbone(folder) "
            "gives it, for a GenerativeModule with the objective it was trained on"
        )
    sampling = read_sampling(description, path)
    return GenerativeModule(load_backbone(folder), **sampling).eval()


def load_backbone(folder: str | Path) -> Backbone:
    """Build the backbone of a folder alone, on the CPU and in evaluation mode.

    Raises: UserError as `from_pretrained`.
    """
    path, config_path = Path(folder) / WEIGHTS_NAME, Path(folder) / CONFIG_NAME
    description = _read_config(config_path)
    backbone = build_backbone(description.get("backbone"), description.get("config"), config_path)
    try:
        weights = load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the folder needs {WEIGHTS_NAME} and {CONFIG_NAME}") from None
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read ({error}): it is truncated or damaged, export it again") from error
    fit_weights(backbone, weights, path)
    check_finite(weights, path, "export another checkpoint")
    if description.get("weights_sha256", digest := sha256(path)) != digest:
        raise UserError(f"{path} is damaged, or not what {CONFIG_NAME} was written with: export the model again")
    return backbone.eval()


def build_backbone(name: Any, config: Any, source: Path) -> Backbone:
    """Build a backbone of this package by its class's name; `source` is the file that an error names."""
    backbone_class = _known_class(name, BACKBONES, source)
    return _build(lambda: backbone_class.from_config(config), f"{source}: config of {name}")


def fit_weights(backbone: Backbone, weights: Mapping[str, Tensor], source: Path) -> None:
    """Load weights into a backbone.

    Raises: UserError that names the first parameters that are missing, unknown or of another shape.
    """
    wrong = mismatch(backbone.state_dict(), weights)
    if wrong is not None:
        raise UserError(
            f"{source} is not of the {type(backbone).__name__} that is described with it: {wrong}: export it again"
        )
    backbone.load_state_dict(weights)


def describe_sampling(model: GenerativeModule) -> dict[str, Any]:
    """Return as plain values what sampling from a module needs beside its backbone."""
    return {
        "objective": _options_of(model.objective),
        "sampler": {"class": _known_name(model.sampler, SAMPLERS), "options": _options_of(model.sampler)},
        "guidance": asdict(model.guidance),
        "seed": model.seed,
    }


def read_sampling(description: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """Return GenerativeModule's options from what `describe_sampling` gave; errors name the file `source`."""
    missing = {"objective", "sampler", "guidance", "seed"} - description.keys()
    if missing:
        raise UserError(f"{source} lacks {', '.join(sorted(missing))}: export the model again")

    def sampler() -> Sampler:
        given = description["sampler"]
        return _known_class(given["class"], SAMPLERS, source)(**given["options"])

    guidance = description["guidance"]
    return {
        "objective": _build(lambda: Objective(**description["objective"]), f"{source}: objective"),
        "sampler": _build(sampler, f"{source}: sampler"),
        "guidance": _build(lambda: Guidance(guidance["scale"], tuple(guidance["interval"])), f"{source}: guidance"),
        "seed": _build(lambda: int(description["seed"]), f"{source}: seed"),
    }


def _read_config(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the folder needs {WEIGHTS_NAME} and {CONFIG_NAME}") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): export the model again") from error
    version = description.get("format_version") if isinstance(description, dict) else None
    if version != FORMAT_VERSION:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        remedy = "update zigma_pl" if newer else "export the model again"
        raise UserError(f"{path} has format_version {version}, this release reads {FORMAT_VERSION}: {remedy}")
    return description


def _known_name(instance: object, known: Mapping[str, type]) -> str:
    name = type(instance).__name__
    if known.get(name) is not type(instance):
        raise UserError(f"{name} cannot be saved to a folder: it is not one of {', '.join(known)}")
    return name


def _known_class(name: Any, known: Mapping[str, type[Built]], source: Path) -> type[Built]:
    if name not in known:
        raise UserError(f"{source} names the class {name}, known are {', '.join(known)}: it is of another program")
    return known[name]


def _options_of(instance: object) -> dict[str, Any]:
    """Return the constructor's options of an object that keeps each under its own name."""
    return {name: getattr(instance, name) for name in inspect.signature(type(instance)).parameters}


def _build(constructor: Callable[[], Built], what: str) -> Built:
    """Call a constructor with options from a file; one that does not fit them is a user's error."""
    try:
        return constructor()
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise UserError(f"{what} cannot be used ({' '.join(str(error).split())}): export the model again") from error
