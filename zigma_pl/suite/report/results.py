"""Result records found below a folder, grouped by experiment for tables and charts."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic_core import from_json

from zigma_pl.core.records import parse_record, read_content
from zigma_pl.evaluation.record import ResultRecord
from zigma_pl.suite.report.experiments import experiment_name
from zigma_pl.suite.report.scores import LITE, LITE_WARNING

SCALES = ("paper", "h100")  # shown in this order, then others, then "smoke", whose scores are meaningless


@dataclass(frozen=True)
class RecordFile:
    """A result record and its file."""

    file: Path
    record: ResultRecord

    @property
    def experiment(self) -> str:
        """Stem of the experiment's YAML file, without the suffix _seed<number> of a run with another seed."""
        return experiment_name(self.record.row)

    @property
    def seed(self) -> int | None:
        """Seed of training and sampling."""
        return self.record.protocol.get("seed")

    @property
    def samples_seen(self) -> int | None:
        """Number of training samples, None if the checkpoint did not contain it."""
        return self.record.training.get("samples_seen")

    def locate(self, path: str) -> Path:
        """Return the path of a file that the record names relative to the working directory of `test`.

        That directory is assumed to be a parent of the record's, or else the current one.
        """
        candidates = [parent / path for parent in self.file.absolute().parents]
        return next((candidate for candidate in candidates if candidate.exists()), Path(path))

    def picture(self, path: str) -> Path | None:
        """Return the path of an image of the record; None if it is no regular file below the record's folder."""
        found = self.locate(path)
        beside = found.resolve().is_relative_to(self.file.parent.resolve())
        return found if beside and found.is_file() else None

    def value(self, score: str) -> float | None:
        """Return a score, or memory or GFLOPs; None if it was not computed."""
        if score in self.record.scores:
            return self.record.scores[score].value
        training = self.record.training
        return {"memory_gb": training.get("memory_gb"), "gflops": training.get("gflops")}.get(score)


def load_results(folder: Path) -> list[RecordFile]:
    """Read all result records below a folder; other JSON files, such as those of `bench`, are ignored.

    Raises:
        UserError: a file is damaged or has a newer format.
    """
    found = [(file, _record(file)) for file in sorted(folder.rglob("*.json"))] if folder.is_dir() else []
    return [RecordFile(file, record) for file, record in found if record is not None]


def _record(file: Path) -> ResultRecord | None:
    content = read_content(file, ResultRecord.remedy)
    try:
        plain = from_json(content)
    except ValueError:
        return parse_record(ResultRecord, content, file)  # raises UserError
    is_record = isinstance(plain, dict) and "format_version" in plain and "scores" in plain
    return parse_record(ResultRecord, content, file) if is_record else None


class RecordCollection:
    """Result records by experiment and scale."""

    def __init__(self, results: Iterable[RecordFile]) -> None:
        self.all = list(results)
        self._by_place: dict[tuple[str, str], list[RecordFile]] = {}
        for result in self.all:
            self._by_place.setdefault((result.experiment, result.record.scale), []).append(result)

    def scales(self, experiments: Iterable[str]) -> list[str]:
        """Return the scales at which any of these experiments was run, the most meaningful first."""
        wanted = set(experiments)
        found = {scale for name, scale in self._by_place if name in wanted}
        known = {scale: index for index, scale in enumerate(SCALES)} | {"smoke": len(SCALES) + 1}
        return sorted(found, key=lambda scale: (known.get(scale, len(SCALES)), scale))

    def of(self, experiment: str, scale: str) -> list[RecordFile]:
        """Return for each seed the record with the longest training; among equals, the first by path."""
        longest: dict[int | None, RecordFile] = {}
        for result in sorted(self.history(experiment, scale), key=_length, reverse=True):  # stable
            longest.setdefault(result.seed, result)
        return sorted(longest.values(), key=lambda result: (result.seed is None, result.seed or 0))

    def history(self, experiment: str, scale: str) -> list[RecordFile]:
        """Return all records of an experiment, sorted by number of training samples."""
        return sorted(self._by_place.get((experiment, scale), []), key=_length)


def _length(result: RecordFile) -> int:
    """Return the number of training samples, 0 if unknown."""
    return result.samples_seen or 0


def circumstances(results: Sequence[RecordFile]) -> list[str]:
    """Return the facts for the title of a table: data, image size, number of samples, features."""
    facts = [
        _each(results, data_of) or "unknown data",
        _each(results, lambda result: _with_unit(result.record.protocol.get("image_size_px"), "px")),
        _each(results, lambda result: _with_unit(result.record.protocol.get("num_fake"), "samples")),
        _features(results),
    ]
    return [fact for fact in facts if fact]


def _each(results: Sequence[RecordFile], fact: Callable[[RecordFile], str | None]) -> str | None:
    """Return the fact of all results, joined if they differ."""
    found = {text for text in map(fact, results) if text is not None}
    return " and ".join(sorted(found, key=lambda text: (len(text), text))) or None


def _with_unit(number: int | None, unit: str) -> str | None:
    return None if number is None else f"{number:,} {unit}"


def data_of(result: RecordFile) -> str | None:
    """Return a description of the data: its note if there is one, else the data set, and whether it is synthetic.

    In records without an entry for the data, the source of the conditions shows whether they are synthetic.
    """
    data = result.record.protocol.get("data")
    if data is None:
        name = (result.record.protocol.get("conditions") or {}).get("dataset")
        return name if is_paper_data(result) else f"synthetic {name}"
    return data.get("note") or (
        f"{data['dataset']}, real data" if is_paper_data(result) else f"synthetic {data['dataset']}"
    )


def is_paper_data(result: RecordFile) -> bool:
    """Whether the data set was the real one, without a note that names other data."""
    protocol = result.record.protocol
    data = protocol.get("data")
    if data is None:
        return "standin_num_items" not in ((protocol.get("conditions") or {}).get("items") or {})
    return not data["standin"] and not data.get("note")


def _features(results: Sequence[RecordFile]) -> str | None:
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


def seeds_of(results: Sequence[RecordFile]) -> str:
    """Return "1 seed", "3 seeds", or "" for no results."""
    return f"{len(results)} seed{'s' if len(results) > 1 else ''}" if results else ""
