"""The options that determine a model's results, stored in its checkpoints and compared when one is loaded.

Weights trained with one scan order can be loaded into a network with another one. Without this check, another scan
order, objective or encoder would silently give different results.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import lightning as L

from zigma_pl.core import class_paths
from zigma_pl.core.errors import UserError
from zigma_pl.data.cache.manifest import CURRENT_NAMES
from zigma_pl.data.specification import Specification
from zigma_pl.training.callbacks.ema import EMA
from zigma_pl.training.checkpoints.content import OPTIONS
from zigma_pl.training.checkpoints.io import read_checkpoint
from zigma_pl.training.module import GenerativeModule

Group = Literal["scan", "objective", "conditions", "encoders", "backbone"]
GROUPS: tuple[Group, ...] = get_args(Group)  # differences are errors; in other options they are reported
TRAINING = "training"
# Options of backbones and mixers that do not change their results.
_ONLY_HOW = {"gradient_checkpointing", "scan_backend", "activation_memory"}
# Module options that have a group of their own, do not change results, or only affect sampling.
_NOT_TRAINING = {"backbone", "objective", "sampler", "guidance", "_instantiator"}
_NOT_TRAINING |= {"compile_backbone", "graph_sampling", "graph_training"}
_CONDITIONS = ("num_classes", "caption_dim", "null_condition", "conditioners")
_CUT = ("image_size_px", "crop", "num_frames")  # options that determine the encoders' input

Options = dict[str, dict[str, Any]]


def options_of(trainer: L.Trainer, module: L.LightningModule) -> Options:
    """Return the options of a run as plain values, by group: those of GROUPS that it has, and TRAINING."""
    options: Options = {}
    if isinstance(module, GenerativeModule):
        backbone = dict(module.backbone.config)
        scan = backbone.pop("scan", None) or {}
        own = {name: value for name, value in backbone.items() if name not in {*_ONLY_HOW, *_CONDITIONS}}
        options = {
            "scan": scan.get("init_args", scan),
            "objective": class_paths.plain(class_paths.options_of(module.objective)),
            "conditions": {name: backbone[name] for name in _CONDITIONS if name in backbone},
            "backbone": {"class": class_paths.summary(module.backbone)["class"], **own},
        }
    data: Any = getattr(trainer, "datamodule", None)
    described = dict(data.described()) if hasattr(data, "described") else {}
    if described:
        options["encoders"] = {name: described.pop(name) for name in _CUT if name in described}
        options["encoders"]["autoencoder"] = data.frozen_autoencoder.fingerprint()
        options["encoders"]["text_encoder"] = None if data.text_encoder is None else data.text_encoder.fingerprint()
    options[TRAINING] = {
        **{name: value for name, value in module.hparams.items() if name not in _NOT_TRAINING},
        **{f"data.{CURRENT_NAMES.get(name, name)}": value for name, value in described.items()},
        "data": type(data).__name__,
        "data.batch_size": getattr(data, "batch_size", None),
        "trainer.accumulate_grad_batches": trainer.accumulate_grad_batches,
        "trainer.gradient_clip_val": trainer.gradient_clip_val,
        "trainer.precision": str(trainer.precision),
        "ema.decay": next((one.decay for one in trainer.callbacks if isinstance(one, EMA)), None),  # type: ignore[attr-defined]
    }
    plain: Options = json.loads(json.dumps(options, default=str))  # tuples become lists
    return plain


def changes_since(found: Mapping[str, Any], module: GenerativeModule) -> list[str]:
    """Return the differences in scan and objective between a module and another model, whose weights it takes.

    Args:
        found: scan and objective of the other model, each as its options, or as their description.
        module: the module.
    """
    scan = class_paths.plain(class_paths.options_of(module.backbone)).get("scan")
    own = {"scan": _options_in(scan), "objective": class_paths.plain(class_paths.options_of(module.objective))}
    return check_same({name: _options_in(found.get(name)) for name in own}, own, GROUPS, "")


def _options_in(description: Any) -> dict[str, Any]:
    options = description.get("init_args", description) if isinstance(description, dict) else None
    return options if isinstance(options, dict) else {}


def stored_specification(path: Path) -> dict[str, int | None]:
    """Return the `Specification` fields of a checkpoint's backbone, by name; the weights are not read.

    Raises: UserError if the checkpoint cannot be read, or one of them is not a whole number.
    """
    options = read_checkpoint(path, "meta").get(OPTIONS, {})
    stored = {**options.get("backbone", {}), **options.get("conditions", {})}
    found = {name: stored.get(name) for name in Specification._fields}
    for name, value in found.items():
        if value is not None and type(value) is not int:
            raise UserError(
                f"checkpoint {path} is invalid ({OPTIONS}: {name} is a {type(value).__name__} and not an int): use the "
                "previous checkpoint"
            )
    return found


def check_same(found: Mapping[str, Mapping[str, Any]], own: Options, allowed: Collection[str], where: Any) -> list[str]:
    """Compare a checkpoint's options with those of this run.

    Args:
        found: `options_of` when the checkpoint was saved.
        own: `options_of` this run.
        allowed: groups that may differ.
        where: path of the checkpoint, for the error message.

    Returns: all differences that are not errors, each like "learning_rate 0.1 -> 0.2".

    Raises:
        UserError: a group differs that is not allowed to.
    """
    reported: list[str] = []
    for group in (*GROUPS, TRAINING):
        if not found.get(group) or not own.get(group):
            continue
        prefix = "" if group == TRAINING else f"{group}."
        changes = list(_changes(prefix, found[group], own[group]))
        if changes and group in GROUPS and group not in allowed:
            raise UserError(
                f"checkpoint {where} was trained with other options ({_listed(changes)}): use the same options, or "
                f"allow the change with --allow_changed {group}"
            )
        reported += changes
    return reported


def _changes(prefix: str, found: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[str]:
    weights = found.get("weights_sha256")
    same_weights = weights is not None and weights == own.get("weights_sha256")
    for name in dict.fromkeys([*own, *found]):
        if name in _ONLY_HOW or (name == "name" and same_weights):  # the same weights under another path
            continue
        if name not in found or name not in own:  # the option exists in only one of the two releases
            continue
        before, now = found[name], own[name]
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            yield from _changes(f"{prefix}{name}.", before, now)
        elif _are_plans(before, now):
            yield from _changes(
                f"{prefix}{name}.", *({str(i): item for i, item in enumerate(plan)} for plan in (before, now))
            )
        elif before != now:
            yield f"{prefix}{name} {_in_short(before)} -> {_in_short(now)}"


def _are_plans(*values: Any) -> bool:
    """Return whether the values are lists of as many objects, such as the mixers of a backbone."""
    return all(isinstance(value, list) and len(value) == len(values[0]) for value in values) and all(
        isinstance(item, Mapping) for value in values for item in value
    )


def _in_short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 40 else f"{text[:37]}..."


def _listed(changes: list[str]) -> str:
    more = f" and {len(changes) - 5} more" if len(changes) > 5 else ""
    return f"{', '.join(changes[:5])}{more}"


def warning_of(changes: list[str], where: Any) -> str:
    """Return a warning that lists the options that changed since a checkpoint."""
    return f"options changed since checkpoint {where}: {_listed(changes)}"
