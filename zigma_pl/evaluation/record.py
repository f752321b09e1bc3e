"""The record of a scored row, results/<row>.json: what `test` writes, and tables and report read."""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from zigma_pl.errors import UserError
from zigma_pl.files import written_whole

FORMAT_VERSION = 1  # to be raised when an older zigma_pl would misread what is written


@dataclass(frozen=True)
class Score:
    """One number.

    value: the score.
    comparable: whether published scores of this name can be put beside it; None for the loss, where the question does
        not arise.
    std: standard deviation over subsets, of KID; None elsewhere.
    by_time: of the loss, its mean in ten equal parts of [0, 1], None where there is no sample; None elsewhere.
    """

    value: float
    comparable: bool | None = None
    std: float | None = None
    by_time: list[float | None] | None = None


@dataclass(frozen=True)
class ResultRecord:
    """All that is known of a scored row; the dictionaries hold plain values only.

    row: name of the row.
    scale: "smoke", "h100", "paper" or "as given".
    scores: by name, "validation_loss" among them.
    protocol: how it was sampled and scored.
    training: which checkpoint, and what went into it.
    machine: device, versions, commit, date.
    pictures: paths of the grid and of clips.
    """

    row: str
    scale: str
    scores: dict[str, Score]
    protocol: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the record as JSON; a score that is not finite becomes null, which `from_json` makes NaN again."""
        record = {"format_version": FORMAT_VERSION, **asdict(self)}
        for score in record["scores"].values():
            score["value"] = score["value"] if math.isfinite(score["value"]) else None
            if score["by_time"] is None:
                del score["by_time"]
        return json.dumps(record, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str | Path) -> Self:
        """Read what `to_json` gave.

        Args:
            text: the JSON.
            where: its file, for errors.

        Raises:
            UserError: it is no record, cut off, or written by a newer zigma_pl.
        """
        try:
            record = json.loads(text)
            version = int(record["format_version"])
            if version <= FORMAT_VERSION:
                scores = {name: _score(entry) for name, entry in record["scores"].items()}
                known = {part.name: record[part.name] for part in fields(cls)}
                return cls(**{**known, "scores": scores})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{where}: is no whole result record ({type(error).__name__}: {error}); remove it and score again"
            ) from error
        raise UserError(
            f"{where}: has format {version}, written by a newer zigma_pl; this one reads up to {FORMAT_VERSION}: "
            "update it"
        )


def _score(entry: dict[str, Any]) -> Score:
    value = entry["value"]
    return Score(
        math.nan if value is None else float(value), entry.get("comparable"), entry.get("std"), entry.get("by_time")
    )


def record_path(results_dir: str | Path, row: str) -> Path:
    """Return where the record of a row is."""
    return Path(results_dir) / f"{row}.json"


def write_record(record: ResultRecord, results_dir: str | Path) -> Path:
    """Write a record, whole or not at all; returns its path."""
    path = record_path(results_dir, record.row)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as file:
        file.write(record.to_json().encode())
    return path


def read_record(path: str | Path) -> ResultRecord:
    """Read a record.

    Raises:
        UserError: there is none, or what `ResultRecord.from_json` raises.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read as a result record ({reason}); score the row with `test`") from error
    return ResultRecord.from_json(text, path)
