"""Schema of training checkpoints: types and ranges of everything that is read, validated before use."""

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, JsonValue, ValidationError
from torch import Tensor, nn

from zigma_pl.core.errors import UserError
from zigma_pl.core.records import Part, problems
from zigma_pl.runtime.sharding import made_whole

FORMAT_KEY = "zigma_format_version"
FORMAT_VERSION = 1  # increase it when older versions of zigma_pl would misread a new file
RAW_WEIGHTS = "current_model_state"  # present if "state_dict" contains the average
RANDOM_STATES = "random_states"  # by rank
POWER_AVERAGES = "power_averages"  # see `callbacks/power_averages.py`
POWER_AVERAGE = "power_average"  # present if "state_dict" contains such an average and there are no raw weights
TRAINED_ON = "trained_on"  # see `GenerativeModule.trained_on`
OPTIONS = "zigma_options"  # see `callbacks/checkpoint_options.py`

# Path to the number of optimiser steps in the state of the loops.
STEP_PATH = ("epoch_loop.automatic_optimization.optim_progress", "optimizer", "step", "total", "completed")

MAX_DEPTH = 32
MAX_VALUES = 10_000_000  # an object that is referenced n times counts n times
MAX_INTEGER = 2**63
_PLAIN = (str, bool, int, float, type(None), torch.dtype, torch.device)

Count = Annotated[int, Field(ge=0, le=2**53)]
Plain = dict[str, Any]


class _Part(Part):
    model_config = ConfigDict(extra="ignore", arbitrary_types_allowed=True)


class OptimizerState(_Part):
    """State of an optimiser: moments by parameter index, and options by group."""

    state: dict[Count, Plain]
    param_groups: list[Plain]


class RandomState(_Part):
    """Schema of `resume.random_state`."""

    python: tuple[int, Tensor, float | None]
    numpy: tuple[str, Tensor, Annotated[int, Field(ge=0, le=624)], Annotated[int, Field(ge=0, le=1)], float]
    torch: Tensor
    cuda: Tensor | None = None


class AveragingState(_Part):
    """Number of updates of the average."""

    n_averaged: Tensor


class TrainedOn(_Part):
    """Description of the training data; see `GenerativeModule.trained_on`."""

    class_names: list[str] | None = None
    captions: list[str] | None = None
    data: dict[str, JsonValue] = Field(default_factory=dict)


class CheckpointContent(_Part):
    """A training checkpoint. Other keys belong to Lightning or other packages and must be plain values."""

    format_version: Count = Field(default=0, alias="zigma_format_version")
    global_step: Count
    epoch: Count = 0
    lightning_version: str = Field(default="2.6.6", alias="pytorch-lightning_version", pattern=r"^\d+(\.\w+)+\z")
    state_dict: dict[str, Tensor]
    raw_weights: dict[str, Tensor] = Field(default_factory=dict, alias="current_model_state")
    averaging_state: AveragingState | None = None
    power_averages: dict[str, dict[str, Tensor]] = Field(default_factory=dict)
    power_average: Plain = Field(default_factory=dict)
    hyper_parameters: Plain = Field(default_factory=dict)
    options: dict[str, dict[str, JsonValue]] = Field(default_factory=dict, alias="zigma_options")
    trained_on: TrainedOn = Field(default_factory=TrainedOn)
    callbacks: dict[str, Any] = Field(default_factory=dict)
    loops: dict[str, Plain] = Field(default_factory=dict)
    optimizer_states: list[OptimizerState] = Field(default_factory=list)
    lr_schedulers: list[Plain] = Field(default_factory=list)
    random_states: list[RandomState] = Field(default_factory=list)


def check_content(checkpoint: Any, where: Any) -> None:
    """Raise a UserError if a checkpoint is not from zigma_pl, or has a value of wrong type or range.

    Args:
        checkpoint: result of `torch.load`.
        where: path of the file.
    """
    if not isinstance(checkpoint, dict) or not {"state_dict", "global_step"} <= checkpoint.keys():
        raise UserError(
            f"{where} is not a training checkpoint of zigma_pl: use one, or convert official ZigMa weights with "
            "`import-zigma`"
        )
    version = checkpoint.get(FORMAT_KEY, 0)
    if type(version) is int and version > FORMAT_VERSION:
        raise UserError(
            f"checkpoint {where} has format version {version if version < MAX_INTEGER else 'unknown'}, but this "
            f"zigma_pl reads versions up to {FORMAT_VERSION}: update zigma_pl"
        )
    try:
        count_values(checkpoint)
        CheckpointContent.model_validate(checkpoint)
    except ValidationError as error:
        raise UserError(f"checkpoint {where} is invalid ({problems(error)}): use the previous checkpoint") from error
    except ValueError as error:
        raise UserError(f"checkpoint {where} is invalid ({error}): use the previous checkpoint") from error


def count_values(value: Any, depth: int = 0, counted: dict[int, int] | None = None) -> int:
    """Return the number of values in nested dicts and lists.

    Raises:
        ValueError: there are too many values, they are nested too deeply, a number or text cannot be encoded, or a
            tensor is larger than its storage.
    """
    counted = {} if counted is None else counted
    if isinstance(value, (dict, list, tuple)):
        if id(value) in counted:
            return counted[id(value)]
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        count = 1 + sum(count_values(part, depth + 1, counted) for part in parts)
        if count > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES:,} values")
        counted[id(value)] = count
    else:
        _check_value(value)
    return counted.get(id(value), 1)


def _check_value(value: Any) -> None:
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"a tensor of shape {tuple(value.shape)} that is larger than its storage")
    elif not isinstance(value, _PLAIN):
        raise ValueError(f"a {type(value).__name__}, which is not a plain value")
    elif isinstance(value, int) and abs(value) >= MAX_INTEGER:
        raise ValueError("an integer of more than 64 bits")
    elif isinstance(value, str):
        value.encode()  # raises UnicodeEncodeError, a ValueError, for a lone surrogate


def check_finite(weights: Mapping[str, Tensor], where: Any, remedy: str) -> None:
    """Raise a UserError if a weight is NaN or infinite.

    Args:
        weights: tensors by name.
        where: origin of the weights, for the error message.
        remedy: what to do, for the error message.
    """
    wrong = not_finite(weights.values())
    if wrong:
        names = [name for name, weight in weights.items() if not_finite([weight])]
        raise UserError(
            f"{where}: {len(names)} of {len(weights)} tensors contain NaN or infinity, such as {names[0]}: {remedy}"
        )


def not_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether any of the tensors contains NaN or infinity; synchronises with the device once."""
    real = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    return bool(real) and not math.isfinite(float(largest(real)))


def largest(tensors: list[Tensor]) -> Tensor:
    """Return the largest magnitude in all of the tensors, on their device; NaN and infinity propagate."""
    return made_whole(nn.utils.get_total_norm([tensor.detach() for tensor in tensors], math.inf))


def check_like(found: Any, own: Any, where: str, *, negative: bool = False) -> None:
    """Raise a ValueError if a part of a checkpoint's state has another type than the state of this run.

    Only keys that both have are compared, as other versions of torch and Lightning have more or fewer keys.

    Args:
        found: the state in a checkpoint.
        own: the state of this run.
        where: name of the state, for the error message.
        negative: whether numbers may be negative, infinite or NaN.
    """
    if isinstance(own, dict):
        if not isinstance(found, dict):
            raise ValueError(f"{where} is a {type(found).__name__} and not a dict")
        for name in own.keys() & found.keys():
            check_like(found[name], own[name], f"{where}.{name}", negative=negative)
    elif isinstance(own, (list, tuple)):
        if not isinstance(found, (list, tuple)) or len(found) != len(own):
            raise ValueError(f"{where} is not a list of {len(own)}")
        for index, (theirs, ours) in enumerate(zip(found, own, strict=True)):
            check_like(theirs, ours, f"{where}.{index}", negative=negative)
    elif own is not None and not (found is None and isinstance(own, bool)):  # unset flags of optimisers are None
        if type(found) is not type(own) and not (type(own) is float and type(found) is int):
            raise ValueError(f"{where} is a {type(found).__name__} and not a {type(own).__name__}")
        if not negative and isinstance(found, (int, float)) and not 0 <= found <= 2**53:
            raise ValueError(f"{where} is {found}")
