"""JSON files that this package writes and reads: a pydantic model for each, with one-line errors for damaged files."""

from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from zigma_pl.core.errors import UserError
from zigma_pl.core.files import read_regular, written_whole

MAX_BYTES = 64 * 2**20  # far above the size of any such file; larger files are not read
# A name that becomes part of a path or a heading: one line, no path separator, no leading dot.
Name = Annotated[str, Field(pattern=r"^\w[\w .,+=@()-]*\z", max_length=200)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}\z")]


class Part(BaseModel):
    """A JSON object within a record: immutable, without unknown keys, without type conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Record(Part):
    """A whole JSON file.

    Subclasses set the two class attributes and add fields.

    Attributes:
        newest_version: format version that this release writes; files with a higher version are rejected. Increase it
            when older releases would misread new files.
        remedy: how to fix a damaged file, the end of the error message.
    """

    newest_version: ClassVar[int] = 1
    remedy: ClassVar[str]

    format_version: int = Field(default=1, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _refuse_newer(cls, data: Any) -> Any:
        version = data.get("format_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > cls.newest_version:
            raise PydanticCustomError(
                "newer_format",
                "format_version {version} was written by a newer zigma_pl; this release reads versions up to {newest}",
                {"version": version, "newest": cls.newest_version},
            )
        return data


RecordType = TypeVar("RecordType", bound=Record)


def parse_record(model: type[RecordType], content: str | bytes, where: str | Path) -> RecordType:
    """Parse the content of a record file.

    Args:
        model: class of the record.
        content: the JSON text.
        where: name of the file, for errors.

    Raises:
        UserError: the content is not JSON, does not match the model, or has a newer format.
    """
    if len(content) > MAX_BYTES:
        raise UserError(f"{where}: {len(content):,} bytes are too many for such a file: {model.remedy}")
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        newer = any(entry["type"] == "newer_format" for entry in error.errors(include_url=False, include_input=False))
        remedy = "update zigma_pl" if newer else model.remedy
        raise UserError(f"{where}: cannot be used ({problems(error)}): {remedy}") from error


def read_record(model: type[RecordType], path: Path) -> RecordType:
    """Read a record from a file.

    Raises:
        UserError: see `read_content` and `parse_record`.
    """
    return parse_record(model, read_content(path, model.remedy), path)


def read_content(path: Path, remedy: str, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the content of a small file.

    Args:
        path: the file.
        remedy: how to fix the problem, the end of the error message.
        max_bytes: larger files are rejected.

    Raises:
        UserError: the file is missing, not a regular file, too large, or cannot be read.
    """
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise UserError(f"{path}: {size:,} bytes are too many for such a file: {remedy}")
        return read_regular(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): {remedy}") from error


def check_name(name: str, where: str) -> None:
    """Raise UserError, starting with `where`, for a name that cannot be part of a path or a heading."""
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise UserError(
            f"{where}: {name[:100]!r} is not a valid name: use up to 200 letters, digits, spaces and _ - + = . , @ ( )"
        ) from error


def write_record(record: Record, path: Path) -> None:
    """Write a record as JSON, atomically."""
    with written_whole(path) as file:
        file.write(record.model_dump_json(indent=1).encode() + b"\n")


def problems(error: ValidationError) -> str:
    """Return the first three problems of a validation error as one short line of printable characters."""
    entries = error.errors(include_url=False, include_input=False)
    shown = [f"{'.'.join(map(str, entry['loc'])) or 'file'}: {entry['msg']}" for entry in entries[:3]]
    more = f"; and {len(entries) - 3} more" if len(entries) > 3 else ""
    return one_line("; ".join(shown)) + more


def one_line(text: str) -> str:
    """Return text, such as another library's error message, as one short line of printable characters."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return shorten(printable, 400, placeholder="...")
