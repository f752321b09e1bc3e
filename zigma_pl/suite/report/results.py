"""Result records as tables and charts need them, found below a folder and grouped by experiment."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic_core import from_json

from zigma_pl.core.records import parse_record, read_content
from zigma_pl.evaluation.record import ResultRecord
from zigma_pl.suite.report.scores import LITE, LITE_WARNING

SCALES = ("paper", "h100")  # shown in this order, then others, then "smoke", which says nothing about quality


@dataclass(frozen=True)
class Result:
    """A record and the file it is in."""

    file: Path
    record: ResultRecord

    @property
    def experiment(self) -> str:
        """Stem of the experiment's YAML file: a run of another seed may be called <experiment>_seed<number>."""
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
        """Return where a file or folder is that the record names relative to the folder in which `test` ran.

        That is one that the record lies in, or the present folder, in which the path is looked for if it is in none.
        """
        candidates = [parent / path for parent in self.file.absolute().parents]
        return next((candidate for candidate in candidates if candidate.exists()), Path(path))

    def picture(self, path: str) -> Path | None:
        """Return where a picture of the record is; None where it is not a regular file below the record's folder."""
        found = self.locate(path)
        beside = found.resolve().is_relative_to(self.file.parent.resolve())
        return found if beside and found.is_file() else None

    def value(self, score: str) -> float | None:
        """Value of a score, or of what else a column is made of; None where it was not computed."""
        if score in self.record.scores:
            return self.record.scores[score].value
        training = self.record.training
        return {"memory_gb": training.get("memory_gb"), "gflops": training.get("gflops")}.get(score)


def load_results(folder: Path) -> list[Result]:
    """Read all result records below a folder; JSON files of other kinds, such as those of `bench`, are left alone.

    Raises:
        UserError: a file is damaged, or of a newer format.
    """
    found = [(file, _record(file)) for file in sorted(folder.rglob("*.json"))] if folder.is_dir() else []
    return [Result(file, record) for file, record in found if record is not None]


def _record(file: Path) -> ResultRecord | None:
    content = read_content(file, ResultRecord.remedy)
    try:
        plain = from_json(content)
    except ValueError:
        return parse_record(ResultRecord, content, file)  # says in one line what is wrong
    is_record = isinstance(plain, dict) and "format_version" in plain and "scores" in plain
    return parse_record(ResultRecord, content, file) if is_record else None


class Results:
    """Records by experiment and scale."""

    def __init__(self, results: Iterable[Result]) -> None:
        self.all = list(results)
        self._by_place: dict[tuple[str, str], list[Result]] = {}
        for result in self.all:
            self._by_place.setdefault((result.experiment, result.record.scale), []).append(result)

    def scales(self, experiments: Iterable[str]) -> list[str]:
        """Return the scales at which any of these experiments was run, those that say most first."""
        wanted = set(experiments)
        found = {scale for name, scale in self._by_place if name in wanted}
        known = {scale: place for place, scale in enumerate(SCALES)} | {"smoke": len(SCALES) + 1}
        return sorted(found, key=lambda scale: (known.get(scale, len(SCALES)), scale))

    def of(self, experiment: str, scale: str) -> list[Result]:
        """Return the longest trained record of each seed of an experiment, of equals the first by path."""
        longest: dict[int | None, Result] = {}
        for result in sorted(
            self.history(experiment, scale), key=_length, reverse=True
        ):  # which keeps equals in their order
            longest.setdefault(result.seed, result)
        return sorted(longest.values(), key=lambda result: (result.seed is None, result.seed or 0))

    def history(self, experiment: str, scale: str) -> list[Result]:
        """Return all records of an experiment, by the samples that training had seen."""
        return sorted(self._by_place.get((experiment, scale), []), key=_length)


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
