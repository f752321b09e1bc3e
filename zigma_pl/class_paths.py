"""Objects as plain values: the import path of their class and its options, and back."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from importlib import import_module
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from zigma_pl.errors import UserError
from zigma_pl.records import problems

Built = TypeVar("Built")
PACKAGE = "zigma_pl"


def described(instance: Any) -> dict[str, Any]:
    """Return the class_path and init_args of an instance of a dataclass."""
    return {"class_path": public_path(type(instance)), "init_args": asdict(instance)}


def public_path(cls: type) -> str:
    """Return the shortest path that a class can be imported by: that of its package, if the package exports it."""
    parts = cls.__module__.split(".")
    for length in range(1, len(parts)):
        package = ".".join(parts[:length])
        if getattr(sys.modules.get(package), cls.__name__, None) is cls:
            return f"{package}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__name__}"


def build_described(description: Any, base: type[Built]) -> Built:
    """Build what `described` gave.

    Raises: UserError when the path is not that of a subclass of `base` in this package, or an option is unknown, of
        another type or out of range.
    """
    path = description.get("class_path") if isinstance(description, Mapping) else None
    module, _, name = str(path).rpartition(".")
    cls: Any = None
    if module.split(".")[0] == PACKAGE:
        try:
            cls = getattr(import_module(module), name, None)
        except (ImportError, ValueError):
            cls = None
    is_class = isinstance(cls, type) and issubclass(cls, base)
    if not is_class or cls.__module__.split(".")[0] != PACKAGE or not is_dataclass(cls):
        raise UserError(f"class_path {str(path)[:100]!r}: is not a {base.__name__} of {PACKAGE}")
    options = description.get("init_args") or {}
    unknown = set(options) - {field.name for field in fields(cls)}
    if unknown:
        raise UserError(f"{path}: has no option {str(sorted(unknown)[0])[:100]!r}")
    try:
        return TypeAdapter(cls).validate_json(json.dumps(options), strict=True)
    except ValidationError as error:
        raise UserError(f"{path}: {problems(error)}") from error
