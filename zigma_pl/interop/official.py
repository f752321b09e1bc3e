"""Load checkpoints of the official ZigMa release (CompVis/zigma) as backbones of this package.

In the release, time runs the other way (t = 0 is noise) and the network predicts x_data - noise. Both differences are
folded into the weights exactly: the last layer is negated, and the weights of the first time layer are changed by the
angle-sum identities so that they apply to 1000 (1 - t). An imported backbone therefore follows the convention of this
package.
"""

import argparse
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.interop.weights_file import read_tensors
from zigma_pl.models.backbones.vision_mamba import VisionMamba
from zigma_pl.models.backbones.zigma import ZigMa
from zigma_pl.models.layers.embeddings import sinusoid_frequencies
from zigma_pl.models.mixers.mamba import MambaMixer
from zigma_pl.scan.schedule import ScanConfig
from zigma_pl.training.checkpoints.archive import damage_of

# Official name -> name in this package. Blocks keep their index.
RENAMES = [
    (r"^x_embedder\.proj\.", "patch_embedding.projection."),
    (r"^pos_embed$", "position_embedding.table"),
    (r"^t_embedder\.", "time_embedding."),
    (r"^y_embedder\.embedding_table\.", "conditioners.class.table."),
    (r"^y_embedder\.", "conditioners.caption.projection."),
    (r"\.conv1d\.weight$", ".conv_weight"),
    (r"\.conv1d\.bias$", ".conv_bias"),
    (r"\.adaLN_modulation\.", ".modulation."),
    (r"\.msa\.to_q\.", ".cross_attention.to_query."),
    (r"\.msa\.to_k\.", ".cross_attention.to_key."),
    (r"\.msa\.to_v\.", ".cross_attention.to_value."),
    (r"\.msa\.to_out\.0\.", ".cross_attention.out_proj."),
    (r"^norm_f\.", "final_layer.legacy_norm."),
    (r"^final_layer\.linear\.", "final_layer.projection."),
]
# In the bidirectional mixer, the names of the reversed direction's parameters have an additional "b".
BIDIRECTIONAL_RENAMES = [
    (r"\.mixer\.(conv1d|x_proj|dt_proj)_b\.", r".mixer.directions.1.\1."),
    (r"\.mixer\.A_b_log$", r".mixer.directions.1.A_log"),
    (r"\.mixer\.D_b$", r".mixer.directions.1.D"),
    (r"\.mixer\.(conv1d\.|x_proj\.|dt_proj\.|A_log$|D$)", r".mixer.directions.0.\1"),
]
BIDIRECTIONAL = "v2"  # the official scan_type for raster order and its reverse
TIME_WEIGHT = "time_embedding.mlp.0.weight"
CLASS_TABLE = "y_embedder.embedding_table.weight"


def load_zigma_checkpoint(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> ZigMa | VisionMamba:
    """Build a backbone from an official state dict: `-backbone(x, 1 - t, y)` equals the official `model(x, t, y)`.

    The inner channels are sorted by their step sizes, as in a newly initialised network.

    Args:
        state_dict: parameters under their official names; a leading "module." or "model." is removed.
        config: options of the official constructor: in_channels, embed_dim, depth, img_dim, patch_size, scan_type,
            use_pe, has_text, d_context, n_context_token, num_classes. Missing ones have the official defaults.

    Returns: the backbone in evaluation mode, float32, on the CPU.
    Raises: UserError if a scan type or option is not supported, or names or shapes do not match.
    """
    backbone = build_backbone(config)
    weights = convert_state_dict(state_dict, bidirectional=isinstance(backbone, VisionMamba))
    try:
        backbone.load_state_dict(weights)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise UserError(f"the checkpoint does not match its config: {' '.join(lines)[:400]}") from error
    for module in backbone.modules():
        if isinstance(module, MambaMixer):
            module.sort_channels()
    return backbone.eval()


def build_backbone(config: Mapping[str, Any]) -> ZigMa | VisionMamba:
    """Build a randomly initialised backbone from the options of the official constructor."""
    use_pe = config.get("use_pe", 0)
    if use_pe not in (0, 1, 2):
        raise UserError(f"use_pe {use_pe} is not supported: the release neither trains nor saves this embedding")
    if config.get("video_frames", 0):
        raise UserError("video checkpoints (video_frames > 0) are not supported yet")
    has_text = bool(config.get("has_text", False))
    num_classes = config.get("num_classes") or -1
    options: dict[str, Any] = {
        "in_channels": config["in_channels"],
        "latent_height": config["img_dim"],
        "latent_width": config["img_dim"],
        "patch_size": config.get("patch_size", 1),
        "width": config["embed_dim"],
        "depth": config["depth"],
        # The release saves its fixed cosine table too, so that both kinds are read from the checkpoint.
        "position_embedding": "learnable" if use_pe else "none",
        "num_classes": num_classes if num_classes > 0 and not has_text else None,
        "caption_dim": config["d_context"] if has_text else None,
        "null_condition": False,
        "residual": "legacy",
    }
    scan_type = config.get("scan_type", BIDIRECTIONAL)
    return VisionMamba(**options) if scan_type == BIDIRECTIONAL else ZigMa(**options, scan=scan_config(scan_type))


def scan_config(scan_type: str) -> ScanConfig:
    """Translate an official scan_type with one direction per layer, such as "zigzagN8" or "hilbertN8"."""
    match = re.fullmatch(r"(zigzag|hilbert)N([1-8])", scan_type)
    if match:
        scheme: Literal["zigzag", "hilbert"] = match[1]  # type: ignore[assignment]
        return ScanConfig(scheme, num_orders=int(match[2]), legacy_inverse=scheme == "hilbert")
    reason = "unknown type"
    if scan_type.startswith("randomN"):
        reason = "the release did not save its random orders"
    supported = f"zigzagN1-8, hilbertN1-8 and {BIDIRECTIONAL}"
    raise UserError(f"scan_type {scan_type!r} cannot be imported ({reason}): supported are {supported}")


def convert_state_dict(state_dict: Mapping[str, Tensor], bidirectional: bool = False) -> dict[str, Tensor]:
    """Rename official parameters, and fold reversed time and negated velocity into the weights."""
    renames = [*BIDIRECTIONAL_RENAMES, *RENAMES] if bidirectional else RENAMES
    weights = {}
    for name, value in strip_prefix(state_dict).items():
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        if name == "patch_embedding.projection.weight":
            value = value.flatten(1)
        elif name.endswith(".conv_weight"):
            value = value.squeeze(1)
        elif name.startswith("final_layer.projection."):
            value = -value
        weights[name] = value
    if TIME_WEIGHT not in weights:
        raise UserError("not a ZigMa checkpoint: t_embedder.mlp.0.weight is missing")
    weights[TIME_WEIGHT] = reverse_time(weights[TIME_WEIGHT])
    return weights


def reverse_time(weight: Tensor) -> Tensor:
    """Return the weight (D, 2 K) that maps [cos(w s), sin(w s)], s = 1000 t, as `weight` maps those at 1000 - s.

    cos(w (1000 - s)) = cos(1000 w) cos(w s) + sin(1000 w) sin(w s), and similarly for the sine.
    """
    cosine_weight, sine_weight = weight.double().chunk(2, dim=1)
    phase = 1000.0 * sinusoid_frequencies(cosine_weight.shape[1]).double()
    new_cosine = cosine_weight * phase.cos() + sine_weight * phase.sin()
    new_sine = cosine_weight * phase.sin() - sine_weight * phase.cos()
    return torch.cat([new_cosine, new_sine], dim=1).to(weight.dtype)


def strip_prefix(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove "module." (of DDP) or "model." if all names have it, and the reference tensors "in.*" and "out"."""
    parameters = {name: value for name, value in state_dict.items() if name != "out" and not name.startswith("in.")}
    for prefix in ("module.", "model."):
        if parameters and all(name.startswith(prefix) for name in parameters):
            parameters = {name.removeprefix(prefix): value for name, value in parameters.items()}
    return parameters


def infer_config(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer the official options from shapes: all but scan_type, and but img_dim if there is no `pos_embed`."""
    shapes = {name: tuple(value.shape) for name, value in strip_prefix(state_dict).items()}
    if "x_embedder.proj.weight" not in shapes:
        raise UserError("not a ZigMa checkpoint: x_embedder.proj.weight is missing")
    dimensions = {"x_embedder.proj.weight": 4, "pos_embed": 3, "y_embedder.weight": 2, CLASS_TABLE: 2}
    for name, expected in dimensions.items():
        if len(shapes.get(name, range(expected))) != expected:
            raise UserError(f"not a ZigMa checkpoint: {name} has shape {shapes[name]}, expected {expected} axes")
    width, in_channels, patch_size, _ = shapes["x_embedder.proj.weight"]
    config: dict[str, Any] = {"in_channels": in_channels, "embed_dim": width, "patch_size": patch_size}
    config["depth"] = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
    config["use_pe"] = 2 if "pos_embed" in shapes else 0
    if any(name.endswith(".A_b_log") for name in shapes):
        config["scan_type"] = "v2"  # only the bidirectional baseline has parameters of a second direction
    if "pos_embed" in shapes:
        config["img_dim"] = round(shapes["pos_embed"][1] ** 0.5) * patch_size
    if "y_embedder.weight" in shapes:
        config |= {"has_text": True, "d_context": shapes["y_embedder.weight"][1]}
    if CLASS_TABLE in shapes:
        config["num_classes"] = shapes[CLASS_TABLE][0]
    return config


def read_state_dict(path: str | Path, weights: str = "ema") -> dict[str, Tensor]:
    """Read a .safetensors or pickled .pt/.pth/.ckpt file of tensors, the latter with `weights_only=True`.

    Args:
        path: the file.
        weights: entry of a .pt file that holds several state dicts, such as "ema" or "model".

    Raises: UserError if the file is missing or truncated, or loading it would execute code.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_tensors(path, "pass the checkpoint to import")
    if not path.is_file():
        raise UserError(f"{path} does not exist: pass the checkpoint to import")
    damage = damage_of(path) if zipfile.is_zipfile(path) else None  # the legacy format is no archive
    if damage is not None:
        raise UserError(f"{path} {damage}: download it again")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is truncated or damaged ({reason}): download it again") from error
    except Exception as error:  # torch raises pickle.UnpicklingError and others for objects that it rejects
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path} contains objects other than tensors ({reason}): save only the state dict and import that file"
        ) from error
    return _select_entry(content, path, weights)


def _select_entry(content: Any, path: Path, weights: str) -> dict[str, Tensor]:
    if isinstance(content, dict) and content and all(isinstance(value, Tensor) for value in content.values()):
        return content
    entry = content.get(weights) if isinstance(content, dict) else None
    if isinstance(entry, dict) and all(isinstance(value, Tensor) for value in entry.values()):
        return entry
    keys = ", ".join(map(repr, content)) if isinstance(content, dict) else type(content).__name__
    raise UserError(f"{path} has no state dict {weights!r} (it contains {keys[:200]}): choose one with --weights")
