"""The record of a scored run, results/<name>.json: written by `test`, read by tables, report and ablations."""

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

_MAX_NAME_BYTES = 255  # limit of common file systems for each part of a path
_OPEN = ConfigDict(extra="allow", strict=True)  # only fields that tables and report read are typed


def _checked_path(path: str) -> str:
    if not path.isprintable() or any(len(part.encode()) > _MAX_NAME_BYTES for part in path.split("/")):
        raise ValueError("must be a path without line breaks or overlong names")
    return path


# May point anywhere: `Result` in report/results.py only reads images next to the record.
OneLinePath = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_checked_path)]
Count = Annotated[int, Field(ge=0, le=2**63)]
# JSON has no NaN or infinity: a score that is not finite is written as null.
Value = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


class ScoreValue(Part):
    """A score or loss.

    Attributes:
        value: the value; NaN after reading if it was not finite.
        comparable: whether it can be compared with published scores of this name; None for the loss.
        std: standard deviation over subsets, for KID; None for others.
        by_time: mean loss in ten equal parts of [0, 1], None for parts without samples; None for scores.
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
    """The data set of training and scoring; `standin` is True for synthetic data."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    dataset: Name
    standin: bool
    note: NotRequired[str | None]


class Conditions(TypedDict, total=False):
    """The source of classes or captions; identifies the data in records without `Data`."""

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
    """The checkpoint and its training."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    steps: Count | None
    samples_seen: Count | None
    log_folder: OneLinePath | None
    seconds: float | None
    memory_gb: float | None
    gflops: float | None


class Pictures(TypedDict, total=False):
    """Images of a run.

    Attributes:
        grid, clips: paths of the grid and the clips, relative to the working directory of `test`.
        captions: captions or class names of the samples in the first row; missing if the model has no such condition.
    """

    grid: OneLinePath | None
    clips: list[OneLinePath]
    captions: list[Annotated[str, Field(max_length=2000)]]


class ResultRecord(Record):
    """The record of a scored run; dictionaries contain only plain values.

    Attributes:
        row: name of the run and of its files.
        scale: scale of the run, such as "smoke", "h100", "paper" or "as given".
        scores: scores by name, including "validation_loss".
        protocol: how samples were generated and scored.
        training: the checkpoint and its training.
        machine: device, versions, commit, date.
        pictures: paths of the grid and the clips.
    """

    remedy: ClassVar[str] = "remove it and score again with `test`"

    row: Name
    scale: Name
    scores: dict[Name, ScoreValue]
    protocol: Protocol
    training: Training
    machine: dict[str, Any]
    pictures: Pictures


def record_path(results_dir: str | Path, row: str) -> Path:
    """Return the path of a run's record."""
    return Path(results_dir) / f"{row}.json"


def write_result(record: ResultRecord, results_dir: str | Path) -> Path:
    """Write a record atomically; returns its path."""
    path = record_path(results_dir, record.row)
    path.parent.mkdir(parents=True, exist_ok=True)
    records.write_record(record, path)
    return path


def read_result(path: str | Path) -> ResultRecord:
    """Read a record.

    Raises:
        UserError: the file is missing, damaged or has a newer format.
    """
    return records.read_record(ResultRecord, Path(path))
