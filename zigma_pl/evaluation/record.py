"""The record of a scored run, results/<name>.json: what `test` writes, and tables, report and ablations read."""

import math
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    NotRequired,  # pydantic needs it before Python 3.12
)

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer
from typing_extensions import TypedDict

from zigma_pl.core import records
from zigma_pl.core.records import Name, Part, Record

_MAX_NAME_BYTES = 255  # of each part of a path, on the usual file systems
_OPEN = ConfigDict(extra="allow", strict=True)  # typed where tables and report read it, free elsewhere


def _checked_path(path: str) -> str:
    if not path.isprintable() or any(len(part.encode()) > _MAX_NAME_BYTES for part in path.split("/")):
        raise ValueError("must be a path of one line")
    return path


# Says nothing of where it leads: `Result` in report/results.py looks for pictures beside the record only.
OneLinePath = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_checked_path)]
Count = Annotated[int, Field(ge=0, le=2**63)]
# JSON has no NaN or infinity: a score that is not finite is written as null.
Value = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


class Score(Part):
    """One number.

    Attributes:
        value: the score; NaN after reading where it was not finite.
        comparable: whether published scores of this name can be compared with it; None for the loss, where the
            question does not arise.
        std: standard deviation over subsets, of KID; None elsewhere.
        by_time: of the loss, its mean in ten equal parts of [0, 1], None where there is no sample; None elsewhere.
    """

    value: Value
    comparable: bool | None = None
    std: float | None = None
    by_time: list[float | None] | None = Field(default=None, max_length=1000)

    @model_serializer(mode="wrap")
    def _without_absent_parts(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        plain: dict[str, Any] = serialise(self)
        if self.by_time is None:
            del plain["by_time"]
        return plain


class Data(TypedDict):
    """Which pictures training and scoring used."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    dataset: Name
    standin: bool
    note: NotRequired[str | None]


class Conditions(TypedDict, total=False):
    """Where classes or captions came from; of records that say nothing else of their data."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    dataset: Name | None
    items: dict[str, Any] | None


class Protocol(TypedDict, total=False):
    """How a checkpoint was sampled and scored."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    seed: Count | None
    num_fake: Count | None
    num_network_calls: float | None
    image_size_px: Count | None
    data: Data | None
    conditions: Conditions | None


class Training(TypedDict, total=False):
    """Which checkpoint, and what went into it."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    steps: Count | None
    samples_seen: Count | None
    log_folder: OneLinePath | None
    memory_gb: float | None
    gflops: float | None


class Pictures(TypedDict, total=False):
    """Paths of the grid and of clips, as seen from where `test` ran."""

    grid: OneLinePath | None
    clips: list[OneLinePath]


class ResultRecord(Record):
    """All that is known of a scored run; the dictionaries hold plain values only.

    Attributes:
        row: name of the run, and of its files.
        scale: "smoke", "h100", "paper" or "as given".
        scores: by name, "validation_loss" among them.
        protocol: how it was sampled and scored.
        training: which checkpoint, and what went into it.
        machine: device, versions, commit, date.
        pictures: paths of the grid and of clips.
    """

    remedy: ClassVar[str] = "remove it and score again with `test`"

    row: Name
    scale: Name
    scores: dict[Name, Score]
    protocol: Protocol
    training: Training
    machine: dict[str, Any]
    pictures: Pictures


def record_path(results_dir: str | Path, row: str) -> Path:
    """Return where the record of a run is."""
    return Path(results_dir) / f"{row}.json"


def write_record(record: ResultRecord, results_dir: str | Path) -> Path:
    """Write a record, whole or not at all; returns its path."""
    path = record_path(results_dir, record.row)
    path.parent.mkdir(parents=True, exist_ok=True)
    records.write_record(record, path)
    return path


def read_record(path: str | Path) -> ResultRecord:
    """Read a record.

    Raises:
        UserError: the file is missing, damaged or of a newer format.
    """
    return records.read_record(ResultRecord, Path(path))
