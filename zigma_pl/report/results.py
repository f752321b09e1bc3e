"""Result records as tables and charts need them, found below a folder and put with their rows."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from zigma_pl.evaluation.record import ResultRecord
from zigma_pl.report.scores import LITE, LITE_WARNING

SCALES = ("paper", "h100")  # shown in this order, then others, then "smoke", which says nothing about quality


@dataclass(frozen=True)
class Result:
    """A record and the file it is in."""

    file: Path
    record: ResultRecord

    @property
    def row(self) -> str:
        """Stem of the row's YAML file: a run of another seed may be called <row>_seed<number>."""
        return re.sub(r"_seed\d+$", "", self.record.row)

    @property
    def seed(self) -> int | None:
        """Seed of training and sampling."""
        return self.record.protocol.get("seed")

    @property
    def samples_seen(self) -> int | None:
        """Samples that training had drawn, None where the checkpoint did not tell."""
        return self.record.training.get("samples_seen")

    def locate(self, path: str) -> Path:
        """Return where a file is that the record names relative to the folder in which `test` ran.

        That is one that the record lies in, or the present folder, in which the path is looked for if it is in none.
        """
        candidates = [parent / path for parent in self.file.absolute().parents]
        return next((candidate for candidate in candidates if candidate.exists()), Path(path))

    def value(self, score: str) -> float | None:
        """Value of a score, or of what else a column is made of; None where it was not computed."""
        return self.record.scores[score].value if score in self.record.scores else self.record.training.get(score)


def load_results(folder: Path) -> list[Result]:
    """Read all result records below a folder; JSON files of other kinds, such as those of `bench`, are left alone.

    Raises:
        UserError: a file is only half there, or of a newer version.
    """
    found = [(file, _record(file)) for file in sorted(folder.rglob("*.json"))] if folder.is_dir() else []
    return [Result(file, record) for file, record in found if record is not None]


def _record(file: Path) -> ResultRecord | None:
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        return ResultRecord.from_json(text, file)  # says in one line what is wrong
    is_record = isinstance(content, dict) and "format_version" in content and "scores" in content
    return ResultRecord.from_json(text, file) if is_record else None


class Results:
    """Records by row and scale."""

    def __init__(self, results: Iterable[Result]) -> None:
        self.all = list(results)
        self._by_place: dict[tuple[str, str], list[Result]] = {}
        for result in self.all:
            self._by_place.setdefault((result.row, result.record.scale), []).append(result)

    def scales(self, rows: Iterable[str]) -> list[str]:
        """Return the scales at which any of these rows was run, those that say most first."""
        wanted = set(rows)
        found = {scale for row, scale in self._by_place if row in wanted}
        known = {scale: place for place, scale in enumerate(SCALES)} | {"smoke": len(SCALES) + 1}
        return sorted(found, key=lambda scale: (known.get(scale, len(SCALES)), scale))

    def of(self, row: str, scale: str) -> list[Result]:
        """Return the records of a row: of each seed the one that was trained longest, of equals the first by path."""
        longest: dict[int | None, Result] = {}
        for result in sorted(self.history(row, scale), key=_length, reverse=True):  # which keeps equals in their order
            longest.setdefault(result.seed, result)
        return sorted(longest.values(), key=lambda result: (result.seed is None, result.seed or 0))

    def history(self, row: str, scale: str) -> list[Result]:
        """Return all records of a row, by the samples that training had seen."""
        return sorted(self._by_place.get((row, scale), []), key=_length)


def _length(result: Result) -> int:
    """Return how long training was, in samples."""
    return result.samples_seen or 0


def circumstances(results: Sequence[Result]) -> list[str]:
    """Return what the title of a table of these records has to say: data, size, number of samples, features."""
    facts = [
        _each(results, _data) or "data not stated",
        _each(results, lambda result: _with_unit(result.record.protocol.get("image_size_px"), "px")),
        _each(results, lambda result: _with_unit(result.record.protocol.get("num_fake"), "samples")),
        _features(results),
    ]
    return [fact for fact in facts if fact]


def _each(results: Sequence[Result], fact: Callable[[Result], str | None]) -> str | None:
    """Return the fact of all results, or the different ones joined."""
    found = {text for text in map(fact, results) if text is not None}
    return " and ".join(sorted(found, key=lambda text: (len(text), text))) or None


def _with_unit(number: int | None, unit: str) -> str | None:
    return None if number is None else f"{number:,} {unit}"


def _data(result: Result) -> str | None:
    """Return what the pictures are: a note on them where there is one, else the data set, real or a stand-in.

    Where a record says nothing of its data, the items that conditions were taken from tell a stand-in.
    """
    protocol = result.record.protocol
    data = protocol.get("data")
    if data is None:
        conditions = protocol.get("conditions") or {}
        name = conditions.get("dataset")
        is_standin = "standin_num_items" in (conditions.get("items") or {})
        return f"a drawn stand-in for {name}" if is_standin else name
    return data.get("note") or (
        f"a drawn stand-in for {data['dataset']}" if data["standin"] else f"{data['dataset']}, real data"
    )


def _features(results: Sequence[Result]) -> str | None:
    names = {name for result in results for name in result.record.scores}
    networks = {
        "Inception": {"fid", "sfid", "kid", "precision", "recall", "frame_fid"},
        "DINOv2": {"fdd"},
        "I3D": {"fvd"},
        "CLIP": {"clip_score"},
    }
    found = [f"{network} features" for network, scores in networks.items() if scores & names]
    if any(name.endswith(LITE) for name in names):
        found.append(LITE_WARNING)
    return ", ".join(found) or None


def seeds_of(results: Sequence[Result]) -> str:
    """Return "1 seed", "3 seeds", or nothing for none."""
    return f"{len(results)} seed{'s' if len(results) > 1 else ''}" if results else ""
