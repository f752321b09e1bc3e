"""What a training checkpoint may hold: types and ranges of all that is read from it, checked before it is used."""

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, ValidationError
from torch import Tensor, nn

from zigma_pl.core.errors import UserError
from zigma_pl.core.records import Part, problems
from zigma_pl.runtime.sharding import made_whole

FORMAT_KEY = "zigma_format_version"
FORMAT_VERSION = 1  # to be raised when an older zigma_pl would misread what is written
RAW_WEIGHTS = "current_model_state"  # beside the average, which is in "state_dict" then
RANDOM_STATES = "random_states"  # by rank
TRAINED_ON = "trained_on"  # see `GenerativeModule.trained_on`
OPTIONS = "zigma_options"  # see `checkpoints/options.py`

# Where the loops' state counts optimiser steps.
STEP_PATH = ("epoch_loop.automatic_optimization.optim_progress", "optimizer", "step", "total", "completed")

MAX_DEPTH = 32
MAX_VALUES = 10_000_000  # an object that is named n times counts n times
MAX_INTEGER = 2**63
_PLAIN = (str, bool, int, float, type(None), torch.dtype, torch.device)

Count = Annotated[int, Field(ge=0, le=2**53)]
Plain = dict[str, Any]


class _Part(Part):
    model_config = ConfigDict(extra="ignore", arbitrary_types_allowed=True)


class OptimizerState(_Part):
    """State of an optimiser: moments by the parameter's number, and options by group."""

    state: dict[Count, Plain]
    param_groups: list[Plain]


class RandomState(_Part):
    """What `resume.random_state` gives."""

    python: tuple[int, Tensor, float | None]
    numpy: tuple[str, Tensor, Annotated[int, Field(ge=0, le=624)], Annotated[int, Field(ge=0, le=1)], float]
    torch: Tensor
    cuda: Tensor | None = None


class AveragingState(_Part):
    """How often the average has been updated."""

    n_averaged: Tensor


class Content(_Part):
    """A training checkpoint. What is not named here is Lightning's or another package's, and plain values."""

    format_version: Count = Field(default=0, alias="zigma_format_version")
    global_step: Count
    epoch: Count = 0
    lightning_version: str = Field(default="2.6.6", alias="pytorch-lightning_version", pattern=r"^\d+(\.\w+)+\z")
    state_dict: dict[str, Tensor]
    raw_weights: dict[str, Tensor] = Field(default_factory=dict, alias="current_model_state")
    averaging_state: AveragingState | None = None
    hyper_parameters: Plain = Field(default_factory=dict)
    options: dict[str, Plain] = Field(default_factory=dict, alias="zigma_options")
    trained_on: Plain = Field(default_factory=dict)
    callbacks: dict[str, Any] = Field(default_factory=dict)
    loops: dict[str, Plain] = Field(default_factory=dict)
    optimizer_states: list[OptimizerState] = Field(default_factory=list)
    lr_schedulers: list[Plain] = Field(default_factory=list)
    random_states: list[RandomState] = Field(default_factory=list)


def check_content(checkpoint: Any, where: Any) -> None:
    """Raise UserError, of one line, where a checkpoint is none of ours or holds something of a wrong type or range.

    Args:
        checkpoint: what `torch.load` gave.
        where: the file.
    """
    if not isinstance(checkpoint, dict) or not {"state_dict", "global_step"} <= checkpoint.keys():
        raise UserError(
            f"checkpoint {where} is not of a training run of zigma_pl: convert official ZigMa weights by `import-zigma`"
        )
    version = checkpoint.get(FORMAT_KEY, 0)
    if type(version) is int and version > FORMAT_VERSION:
        raise UserError(
            f"checkpoint {where} has format {version if version < MAX_INTEGER else 'unknown'}, written by a newer "
            f"zigma_pl; this one reads up to {FORMAT_VERSION}: update it"
        )
    try:
        count_values(checkpoint)
        Content.model_validate(checkpoint)
    except ValidationError as error:
        raise UserError(
            f"checkpoint {where} cannot be used ({problems(error)}): use the one saved before it"
        ) from error
    except ValueError as error:
        raise UserError(f"checkpoint {where} cannot be used ({error}): use the one saved before it") from error


def count_values(value: Any, depth: int = 0, counted: dict[int, int] | None = None) -> int:
    """Return how many values are in nested dicts and lists.

    Raises:
        ValueError: there are too many or too deep ones, a number or text that cannot be written, or a tensor that is
            larger than its storage.
    """
    counted = {} if counted is None else counted
    if isinstance(value, (dict, list, tuple)):
        if id(value) in counted:
            return counted[id(value)]
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        number = 1 + sum(count_values(part, depth + 1, counted) for part in parts)
        if number > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES:,} values")
        counted[id(value)] = number
    else:
        _check_value(value)
    return counted.get(id(value), 1)


def _check_value(value: Any) -> None:
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"a tensor of shape {tuple(value.shape)} that is larger than its storage")
    elif not isinstance(value, _PLAIN):
        raise ValueError(f"a {type(value).__name__}, which is no plain value")
    elif isinstance(value, int) and abs(value) >= MAX_INTEGER:
        raise ValueError("an integer of more than 64 bits")
    elif isinstance(value, str):
        value.encode()  # of a lone surrogate: UnicodeEncodeError, which is a ValueError


def check_finite(weights: Mapping[str, Tensor], where: Any, remedy: str) -> None:
    """Raise UserError where a weight is NaN or infinite.

    Args:
        weights: by name.
        where: whose they are, for the error.
        remedy: what to do, for the error.
    """
    wrong = not_finite(weights.values())
    if wrong:
        names = [name for name, weight in weights.items() if not_finite([weight])]
        raise UserError(
            f"{where}: {len(names)} of {len(weights)} tensors hold NaN or infinity, such as {names[0]}: {remedy}"
        )


def not_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether a number in any of the tensors is NaN or infinite; waits once for the device."""
    real = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    return bool(real) and not math.isfinite(float(largest(real)))


def largest(tensors: list[Tensor]) -> Tensor:
    """Return the largest magnitude in all of the tensors, on their device; NaN and infinity stay what they are."""
    return made_whole(nn.utils.get_total_norm([tensor.detach() for tensor in tensors], math.inf))


def check_like(found: Any, own: Any, where: str, *, negative: bool = False) -> None:
    """Raise ValueError where a part of a state has another type than this run's own.

    Of dicts only what both have is compared: other versions of torch and Lightning have more or fewer entries.

    Args:
        found: the state in a checkpoint.
        own: that of this run.
        where: what it is, for the error.
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
        for number, (theirs, ours) in enumerate(zip(found, own, strict=True)):
            check_like(theirs, ours, f"{where}.{number}", negative=negative)
    elif own is not None and not (found is None and isinstance(own, bool)):  # an unset flag of an optimiser is None
        if type(found) is not type(own) and not (type(own) is float and type(found) is int):
            raise ValueError(f"{where} is a {type(found).__name__} and not a {type(own).__name__}")
        if not negative and isinstance(found, (int, float)) and not 0 <= found <= 2**53:
            raise ValueError(f"{where} is {found}")
