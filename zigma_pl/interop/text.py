"""Samplers, guidance and conditions from the options of `python -m zigma_pl sample`."""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from zigma_pl.core.batch import Condition
from zigma_pl.core.class_paths import NotAllowed, build_described, described, find_class
from zigma_pl.core.errors import UserError
from zigma_pl.data.npy import map_npy
from zigma_pl.interpolant import samplers
from zigma_pl.interpolant.samplers import Guidance, Sampler
from zigma_pl.models.backbones.base import Backbone


def sampler_from_text(
    current: Sampler, class_path: str | None, options: Mapping[str, str], allow_imports: Sequence[str] = ()
) -> Sampler:
    """Return a sampler with these options.

    Args:
        current: the model's sampler. Its other options are kept if no class is named.
        class_path: class of the sampler, whose other options have their defaults; None for that of `current`.
        options: values as in JSON; a value that is not JSON is a string.
        allow_imports: other packages whose classes may be used.

    Raises: UserError if the class is unknown or not allowed, or an option is unknown or invalid.
    """
    if class_path is None and not options:
        return current
    description: dict[str, Any] = (
        described(current) if class_path is None else {"class_path": class_path, "init_args": {}}
    )
    cls = _class_of_sampler(description["class_path"], allow_imports)
    _, *known = inspect.signature(cls.__init__).parameters.values()
    names = [option.name for option in known]
    for name in options:
        if name not in names and all(option.kind is not option.VAR_KEYWORD for option in known):
            raise UserError(f"--sampler.{name}: the options of {cls.__name__} are {', '.join(names) or 'none'}")
    init_args = {**description["init_args"], **{name: _value(text) for name, text in options.items()}}
    return build_described({**description, "init_args": init_args}, Sampler, allow_imports)  # type: ignore[type-abstract]


def _class_of_sampler(path: str, allow_imports: Sequence[str]) -> type[Sampler]:
    try:
        return find_class(path, Sampler, allow_imports)  # type: ignore[type-abstract]
    except NotAllowed as error:
        raise UserError(f"--sampler {error}") from error
    except UserError as error:
        exported = (getattr(samplers, name) for name in samplers.__all__)
        own = [cls.__name__ for cls in exported if isinstance(cls, type) and issubclass(cls, Sampler)]
        own.remove("Sampler")
        raise UserError(f"--sampler: {error}; those of zigma_pl are {', '.join(own)}") from error


def guidance_from_options(
    current: Guidance, scale: float | None, interval: Sequence[float] | None, drop: Sequence[str] | None
) -> Guidance:
    """Return the guidance with another scale, interval or other dropped conditions; None keeps the current value.

    Raises: UserError for a value out of range, or an interval or dropped conditions at scale 1.
    """
    given: dict[str, Any] = {
        "scale": scale,
        "interval": None if interval is None else tuple(interval),
        "drop": None if drop is None else list(drop),
    }
    given = {name: value for name, value in given.items() if value is not None}
    guidance = replace(current, **given)
    if guidance.scale == 1 and (interval is not None or drop is not None):
        raise UserError("guidance has no effect at scale 1: pass --guidance SCALE")
    return guidance


def condition_from_text(text: str, backbone: Backbone) -> tuple[str, Condition]:
    """Return name and values, (1, ...), of a condition of one sample.

    Args:
        text: NAME=VALUE, where the value is a number, a list as in JSON, or the path of a .npy file.
        backbone: the backbone, which determines the dtype of the values.

    Raises: UserError if the backbone does not have the condition, or the value is none of these.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--condition {text[:100]}: expected NAME=VALUE, such as brightness=0.3 or edges=edges.npy")
    if name not in backbone.conditioners:
        known = ", ".join(backbone.conditioners) or "none"
        raise UserError(f"--condition {name}: the model has no such condition, only: {known}")
    conditioner: Any = backbone.conditioners[name]
    dtype = conditioner.placeholder(1, torch.device("cpu")).values.dtype
    try:
        given = map_npy(Path(value)) if value.endswith(".npy") else json.loads(value)
        values = torch.as_tensor(given).to(dtype)
    except OSError as error:
        raise UserError(f"--condition {name}: {value} cannot be read ({error.strerror}): correct the path") from error
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"--condition {name}: {value[:100]!r} is no number, list of numbers or .npy file: correct it"
        ) from error
    return name, Condition(values[None])


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
