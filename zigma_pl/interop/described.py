"""config.json of an exported model: what it may hold, and objects built from the options in it. Nothing executes."""

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self, TypeVar, get_type_hints

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic.errors import PydanticSchemaGenerationError

from zigma_pl.encoders.text import TextEncoderName
from zigma_pl.errors import UserError
from zigma_pl.records import Part, Record, Sha256

REMEDY = "export the model again"
Built = TypeVar("Built")


class ClassOptions(Part):
    """A class of this package by its name, and its constructor's options."""

    model_config = ConfigDict(serialize_by_alias=True)

    class_name: str = Field(alias="class")
    options: dict[str, Any]

    @classmethod
    def of(cls, class_name: str, options: Mapping[str, Any]) -> Self:
        """Describe a class and its options."""
        return cls.model_validate({"class": class_name, "options": dict(options)})


class Sparse(Part):
    """Part of a file in which what is absent is left out."""

    @model_serializer(mode="wrap")
    def _present(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if value is not None}


class DataDescription(Sparse):
    """The data set that a model was trained on, and the frozen encoders of its data module."""

    model_config = ConfigDict(extra="ignore", serialize_by_alias=True)

    class_path: str | None = Field(default=None, alias="class")
    image_size_px: int | None = None
    autoencoder: str | None = None
    autoencoder_subfolder: str | None = None
    text_encoder: TextEncoderName | None = None
    text_encoder_path: str | None = None
    max_caption_tokens: int | None = Field(default=None, ge=1, le=65_536)


class ModelConfig(Sparse, Record):
    """What config.json says.

    Attributes:
        backbone: name of its class.
        config: the constructor's options of the backbone.
        objective, sampler, guidance, seed: what sampling needs; of a backbone alone all are None.
        training: which step and which weights it was exported from.
        data: what it was trained on.
        weights_sha256: of model.safetensors.
    """

    model_config = ConfigDict(extra="allow")  # a user may keep more in it, which nothing reads
    newest_version: ClassVar[int] = 2  # of version 1 are exports with options of mixers among those of the backbone
    remedy: ClassVar[str] = REMEDY

    format_version: int = Field(default=2, ge=1)
    backbone: str
    config: dict[str, Any]
    objective: dict[str, Any] | None = None
    sampler: ClassOptions | None = None
    guidance: dict[str, Any] | None = None
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    training: dict[str, Any] | None = None
    data: DataDescription | None = None
    weights_sha256: Sha256 | None = None

    @model_validator(mode="after")
    def _samples_or_not(self) -> Self:
        sections = ("objective", "sampler", "guidance", "seed")
        missing = [name for name in sections if getattr(self, name) is None]
        if missing and len(missing) < len(sections):
            raise ValueError(f"lacks {', '.join(missing)}")
        return self


def known_name(instance: object, known: Mapping[str, type]) -> str:
    """Return the name of an object's class.

    Raises:
        UserError: the class is none of those known.
    """
    name = type(instance).__name__
    if known.get(name) is not type(instance):
        raise UserError(f"{name} cannot be saved to a folder: it is not one of {', '.join(known)}")
    return name


def known_class(name: str, known: Mapping[str, type[Built]], source: object) -> type[Built]:
    """Return the class of a name that the file `source` gives.

    Raises:
        UserError: there is none of that name.
    """
    if name not in known:
        raise UserError(f"{source} names the class {name[:100]!r}, known are {', '.join(known)}: {REMEDY}")
    return known[name]


def options_of(instance: object) -> dict[str, Any]:
    """Return the constructor's options of an object that keeps each under its own name."""
    return {name: getattr(instance, name) for name in inspect.signature(type(instance)).parameters}


def build(
    constructor: type[Built],
    options: Mapping[str, Any],
    what: str,
    from_options: Callable[[Mapping[str, Any]], Built] | None = None,
) -> Built:
    """Return an object built with options from a file.

    Args:
        constructor: its class, whose type hints the options have to fit.
        options: by name, as JSON has them.
        what: file and section, for errors.
        from_options: what builds it; None for the class itself.

    Raises:
        UserError: an option is unknown, missing, of another type or out of range.
    """
    try:
        parsed = _parsed(constructor, options)
        return from_options(options) if from_options else constructor(**parsed)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:400]
        raise UserError(f"{what} cannot be used ({reason}): {REMEDY}") from error


def _parsed(constructor: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options in the types of the constructor's signature, such as tuples for lists.

    Raises:
        UserError: an option is not of its type.
    """
    hints = get_type_hints(constructor.__init__)  # type: ignore[misc]
    parsed = {}
    for name, value in options.items():
        try:
            adapter = TypeAdapter(hints.get(name, Any))
            parsed[name] = adapter.validate_json(json.dumps(value), strict=True)
        except PydanticSchemaGenerationError:  # an object, which the class's own `from_config` makes and checks
            parsed[name] = value
        except ValidationError as error:
            raise UserError(f"{name}: {error.errors(include_url=False, include_input=False)[0]['msg']}") from error
    return parsed
