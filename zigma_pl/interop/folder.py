"""A backbone as a folder: model.safetensors (weights) and config.json (how to build it). Nothing in it executes."""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from zigma_pl.backbones import Backbone, DiT, ParallelMamba, UViT, VisionMamba, ZigMa
from zigma_pl.errors import UserError

FORMAT_VERSION = 1
WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
BACKBONES: dict[str, type[Backbone]] = {
    backbone.__name__: backbone for backbone in (ZigMa, VisionMamba, ParallelMamba, DiT, UViT)
}


def save_pretrained(backbone: Backbone, folder: str | Path) -> Path:
    """Write the backbone's weights and config to `folder`, made when missing; return the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in backbone.state_dict().items()}
    save_file(weights, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    description = {
        "format_version": FORMAT_VERSION,
        "backbone": type(backbone).__name__,
        "config": backbone.config,
    }
    (folder / CONFIG_NAME).write_text(json.dumps(description, indent=2) + "\n")
    return folder


def from_pretrained(folder: str | Path) -> Backbone:
    """Build the backbone that `save_pretrained` wrote, on the CPU and in evaluation mode.

    Raises: UserError when a file is missing, unreadable, truncated, or of an unknown format version.
    """
    folder = Path(folder)
    description = _read_config(folder / CONFIG_NAME)
    backbone = BACKBONES[description["backbone"]].from_config(description["config"])
    path = folder / WEIGHTS_NAME
    try:
        weights = load_file(path)
        backbone.load_state_dict(weights)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the folder needs {WEIGHTS_NAME} and {CONFIG_NAME}") from None
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be loaded ({reason}): it is truncated or not of this {CONFIG_NAME}") from error
    return backbone.eval()


def _read_config(path: Path) -> dict:
    try:
        description = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the folder needs {WEIGHTS_NAME} and {CONFIG_NAME}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error}): export the model again") from error
    if description.get("format_version") != FORMAT_VERSION:
        version = description.get("format_version")
        raise UserError(f"{path} has format_version {version}, this release reads {FORMAT_VERSION}: export it again")
    if description["backbone"] not in BACKBONES:
        raise UserError(f"{path} names the backbone {description['backbone']}, known are {', '.join(BACKBONES)}")
    return description
