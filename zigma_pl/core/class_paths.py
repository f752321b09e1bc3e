"""Conversion of objects to plain values and back: the import path of their class with its options.

A description is {"class_path": "zigma_pl.samplers.ODESampler", "init_args": {"num_steps": 20}}, as in YAML. An option
whose value is an object is described in the same way. Dataclasses and subclasses of `Configurable` can be described,
including those of other packages.
"""

import inspect
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from zigma_pl.core.errors import UserError
from zigma_pl.core.records import one_line

Built = TypeVar("Built")
PACKAGE = "zigma_pl"
# Public modules that export the classes of this package. Files record these paths, so they must stay valid when a class
# moves to another module.
PUBLIC_MODULES = tuple(
    f"{PACKAGE}.{name}"
    for name in (
        "backbones",
        "mixers",
        "conditioners",
        "scan",
        "interpolant",
        "samplers",
        "optimizers",
        "encoders",
        "data",
        "metrics",
        "losses",
    )
)
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_ERRORS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError)


class NotAllowed(UserError):
    """A file names a class of a package that the caller has not allowed."""


class Configurable:
    """Base class of objects that can be described: it stores the arguments of the constructor call."""

    _arguments: tuple[tuple[Any, ...], dict[str, Any]]
    _chosen: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Create an instance; copying and unpickling call this without arguments and restore the stored ones later."""
        instance = super().__new__(cls)
        instance.__dict__["_arguments"] = (args, kwargs)  # nn.Module refuses attributes before its __init__
        instance.__dict__["_chosen"] = {}
        return instance

    def choose(self, **options: Any) -> None:
        """Record the values used for options that were None, so that a later change of a default has no effect.

        Names that are not options of the subclass are ignored.
        """
        self.__dict__["_chosen"] |= options


# --- from an object to plain values -----------------------------------------------------------------------------------


def options_of(instance: Any) -> dict[str, Any]:
    """Return the constructor's options of an object by name, with defaults or chosen values for omitted ones.

    Args:
        instance: an instance of a `Configurable` class or of a dataclass.
    """
    if is_dataclass(instance):
        return {field.name: getattr(instance, field.name) for field in fields(instance) if field.init}
    args, kwargs = instance._arguments
    constructor = inspect.signature(type(instance).__init__)
    bound = constructor.bind(instance, *args, **kwargs)
    bound.apply_defaults()
    options: dict[str, Any] = {}
    for (name, parameter), value in zip(constructor.parameters.items(), bound.arguments.values(), strict=True):
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            options |= value
        elif value is not instance and (value or parameter.kind is not inspect.Parameter.VAR_POSITIONAL):
            options[name] = value
    chosen = {name: value for name, value in instance._chosen.items() if options.get(name, value) is None}
    return options | chosen


def plain(value: Any) -> Any:
    """Return a value with every object in it that can be described replaced by its description, as for JSON."""
    if isinstance(value, Configurable) or (is_dataclass(value) and not isinstance(value, type)):
        return described(value)
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def described(instance: Any) -> dict[str, Any]:
    """Return the class_path and init_args of an object; see `options_of`."""
    return {"class_path": public_path(type(instance)), "init_args": plain(options_of(instance))}


def summary(instance: Any, usual: type | None = None) -> dict[str, Any]:
    """Return an object's options, with its class name unless that is the usual class, for records that people read."""
    cls = type(instance)
    if cls is usual:
        return plain(options_of(instance))
    return {"class": class_name(cls), **plain(options_of(instance))}


def class_name(cls: type) -> str:
    """Return the name of a class of this package, or the import path of any other class."""
    return cls.__name__ if cls.__module__.split(".")[0] == PACKAGE else public_path(cls)


def public_path(cls: type) -> str:
    """Return the public import path of a class: a public module of this package, otherwise its shortest import path.

    The result depends only on which modules export the class.
    """
    if cls.__module__.split(".")[0] == PACKAGE:
        home = next((name for name in PUBLIC_MODULES if _exported(name, cls.__name__) is cls), None)
        return f"{home or cls.__module__}.{cls.__qualname__}"
    parts = cls.__module__.split(".")
    packages = [".".join(parts[: length + 1]) for length in range(len(parts))]
    home = next((name for name in packages if getattr(sys.modules.get(name), cls.__name__, None) is cls), None)
    return f"{home or cls.__module__}.{cls.__qualname__}"


def recorded(instance: Any, what: str) -> dict[str, Any]:
    """Return a description that can be written to a file and built from it again.

    Args:
        instance: see `options_of`.
        what: name of the object in errors.

    Raises:
        UserError: the class of the object or of an option cannot be imported, or an option is not a plain value.
    """
    if not (isinstance(instance, Configurable) or is_dataclass(instance)):
        raise UserError(f"{what}: the options of a {type(instance).__name__} cannot be saved: make it a dataclass")
    description = described(instance)
    check_recordable(description, what)
    return description


def check_recordable(value: Any, what: str) -> None:
    """Raise UserError unless a value, called `what`, contains only plain values and classes that can be imported."""
    if isinstance(value, dict):
        path = value.get("class_path")
        if isinstance(path, str) and (not _PATH.fullmatch(path) or path.startswith("__main__.")):
            raise UserError(f"{what}: {path} cannot be imported: define the class at the top level of a module")
        for name, part in value.items():
            check_recordable(part, f"{what}.{name}" if name not in ("class_path", "init_args") else what)
    elif isinstance(value, list):
        for part in value:
            check_recordable(part, what)
    elif not isinstance(value, (bool, int, float, str, NoneType)):
        raise UserError(f"{what}: a {type(value).__name__} cannot be saved: use plain values, or a dataclass of them")


# --- from plain values to an object -----------------------------------------------------------------------------------


def find_class(path: Any, base: type[Built], allow_imports: Sequence[str] = ()) -> type[Built]:
    """Return the class with an import path, importing only this package and those that are allowed.

    Args:
        path: such as "zigma_pl.samplers.ODESampler". For a class of this package, its name alone is enough, and paths
            from before it was moved still work.
        base: the class must be a subclass of this one.
        allow_imports: packages, other than this one, whose classes may be used.

    Raises:
        UserError: there is no such class, or it is defined in a package that is not allowed.
    """
    kind = base.__name__
    if not isinstance(path, str) or len(path) > 500 or not _PATH.fullmatch(path):
        raise UserError(f"{str(path)[:100]!r} is not the import path of a {kind}")
    module, _, name = path.rpartition(".")
    found = None
    if module in ("", PACKAGE) or module.startswith(f"{PACKAGE}."):
        found = next((cls for home in PUBLIC_MODULES if (cls := _exported(home, name)) is not None), None)
    elif not _is_in(module, allow_imports):
        package = module.split(".")[0]
        raise NotAllowed(
            f"{path}: classes of {package} are not allowed: if you trust this package, pass --allow_import {package}, "
            f'in Python allow_imports=("{package}",)'
        )
    if found is None and module:
        found = _imported(module, name)
    allowed = (PACKAGE, *allow_imports)
    if not (isinstance(found, type) and issubclass(found, base) and _is_in(found.__module__, allowed)):
        raise UserError(f"{path} is not a subclass of {kind} defined in {' or '.join(allowed)}: correct the class path")
    if inspect.isabstract(found):
        raise UserError(f"{path} is an abstract class: name one of its subclasses")
    return found


def build_described(description: Any, base: type[Built], allow_imports: Sequence[str] = ()) -> Built:
    """Build an object from the description that `described` returns.

    Args:
        description: class_path and init_args; without a class_path, the options of `base` itself.
        base: the class must be a subclass of this one.
        allow_imports: see `find_class`.

    Raises:
        UserError: the class is not allowed, or an option is unknown, missing, out of range or of the wrong type.
    """
    if not isinstance(description, Mapping):
        raise UserError(f"{str(description)[:100]!r} is not a mapping with class_path and init_args")
    cls: type[Built] = base
    options: Any = description
    if "class_path" in description:
        cls = find_class(description["class_path"], base, allow_imports)
        options = description.get("init_args") or {}
        if not isinstance(options, Mapping) or description.keys() - {"class_path", "init_args"}:
            raise UserError(f"{cls.__name__}: expected only class_path and init_args: put options into init_args")
    try:
        return cls(**parsed_options(cls, options, allow_imports))
    except UserError:
        raise
    except _ERRORS as error:
        raise UserError(f"{cls.__name__}: {one_line(str(error))}") from error


def parsed_options(constructor: type, options: Mapping[str, Any], allow_imports: Sequence[str] = ()) -> dict[str, Any]:
    """Convert plain options to the types in a constructor's signature: tuples, dataclasses and described objects.

    Raises:
        UserError: an option has the wrong type.
    """
    hints = _hints(constructor)
    parsed = {}
    for name, value in options.items():
        try:
            parsed[name] = _parsed(value, hints.get(name, Any), allow_imports)
        except ValidationError as error:
            message = error.errors(include_url=False, include_input=False)[0]["msg"]
            raise UserError(f"{constructor.__name__}.{name}: {message}") from error
        except NotAllowed:
            raise
        except _ERRORS as error:
            raise UserError(f"{constructor.__name__}.{name}: {one_line(str(error))}") from error
    return parsed


def _hints(constructor: type) -> dict[str, Any]:
    """Return the types of a constructor's options, including those that **options passes to parent classes."""
    hints: dict[str, Any] = {}
    for parent in reversed(constructor.__mro__):
        if "__init__" in vars(parent):
            hints |= get_type_hints(parent.__init__, include_extras=True)  # type: ignore[misc]
    return hints


def _parsed(value: Any, hint: Any, allow_imports: Sequence[str]) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated and _is_plain(arguments[0]):
        return TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
    if origin is Annotated:
        return _parsed(value, arguments[0], allow_imports)
    if origin in (Union, UnionType):
        return _first_that_fits(value, arguments, allow_imports)
    if hint is Any:
        return value
    if _is_plain(hint):
        return TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
    if origin in (list, Sequence) and isinstance(value, list):
        return [_parsed(part, arguments[0], allow_imports) for part in value]
    if origin is tuple and isinstance(value, list):
        kinds = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        return tuple(_parsed(part, kind, allow_imports) for part, kind in zip(value, kinds, strict=True))
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {name: _parsed(part, arguments[1], allow_imports) for name, part in value.items()}
    if isinstance(hint, type) and (is_dataclass(hint) or (isinstance(value, Mapping) and "class_path" in value)):
        return build_described(value, hint, allow_imports)
    try:
        return TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
    except PydanticSchemaGenerationError:
        raise TypeError(f"expected {getattr(hint, '__name__', hint)}, got {type(value).__name__}") from None


def _is_plain(hint: Any) -> bool:
    return get_origin(hint) is Literal or hint in (None, NoneType, bool, int, float, str, Path)


def _first_that_fits(value: Any, hints: Sequence[Any], allow_imports: Sequence[str]) -> Any:
    errors: list[Exception] = []
    for hint in hints:
        try:
            return _parsed(value, hint, allow_imports)
        except NotAllowed:
            raise
        except _ERRORS as error:
            errors.append(error)
    described = isinstance(value, Mapping)
    raise next((error for error in errors if isinstance(error, UserError) and described), errors[0])


def packages_named(description: Any) -> set[str]:
    """Return the packages, other than this one, of the classes named in a description."""
    if isinstance(description, list):
        return set().union(*map(packages_named, description))
    if not isinstance(description, Mapping):
        return set()
    path = description.get("class_path")
    package = path.split(".")[0] if isinstance(path, str) and "." in path else PACKAGE
    return {package, *packages_named(list(description.values()))} - {PACKAGE}


def _is_in(module: str, packages: Sequence[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _exported(module: str, name: str) -> Any:
    """Return the object that a public module exports under a name, or None."""
    try:
        exports = import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        return None
    return getattr(exports, name, None) if name in exports.__all__ else None


def _imported(module: str, name: str) -> Any:
    try:
        return getattr(import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name is not None and _is_in(module, [error.name]):
            return None
        raise
