"""Training curves of a run, from the files of TensorBoard or CSVLogger in its log folder or from an earlier report."""

import csv
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from zigma_pl.core.errors import UserError
from zigma_pl.core.records import one_line, problems, read_content
from zigma_pl.suite.report.assets import RunAssets
from zigma_pl.suite.report.results import RecordFile

TAGS = ("train/loss", "validation/loss")  # shown by the report
VELOCITY_LOSS = "validation/velocity_loss"  # shown for runs with a record
EVENTS, CSV_FILE = "events.out.tfevents.*", "metrics.csv"  # files with curves in a log folder
NUM_PARTS = 100  # points of a long training curve, each the mean of a part
_DIGITS = 5  # significant ones of stored values

Points = list[tuple[float, float]]  # (step or samples seen, value)
_STORED = TypeAdapter(dict[str, Points])


def curves_of(result: RecordFile, run: RunAssets) -> dict[str, Points]:
    """Return the losses of a run over samples seen, and write them to curves.json among its assets.

    Args:
        result: the record, whose log folder is read if it exists.
        run: assets of the record, with the curves of an earlier report.
    """
    folder = result.record.training.get("log_folder")
    logged = read_curves(result.locate(folder)) if folder else {}
    curves = {tag: shortened(over_samples(result, logged[tag])) for tag in (*TAGS, VELOCITY_LOSS) if tag in logged}
    if not any(curves.values()):
        curves = _stored(run.earlier("curves.json"))
    if curves:
        run.write(to_json(curves), "curves.json")
    return curves


def _stored(file: Path | None) -> dict[str, Points]:
    if file is None:
        return {}
    remedy = "remove it or the earlier report"
    try:
        return _STORED.validate_json(read_content(file, remedy))
    except ValidationError as error:
        raise UserError(f"{file}: cannot be used ({problems(error)}): {remedy}") from error


def over_samples(result: RecordFile, points: Points) -> Points:
    """Return a curve over samples seen; empty if the record has no number of samples or steps."""
    steps = result.record.training.get("steps")
    if not steps or not result.samples_seen:
        return []
    return [((step + 1) * result.samples_seen / steps, value) for step, value in points]  # Lightning counts from 0


def shortened(points: Points) -> Points:
    """Return a curve with at most 2 NUM_PARTS points, and values rounded to 5 digits."""
    return [(float(round(x)), float(f"{y:.{_DIGITS}g}")) for x, y in averaged(points, NUM_PARTS)]


def read_curves(log_folder: Path) -> dict[str, Points]:
    """Return the scalars of a run, and of the runs that it was resumed from, by tag such as "train/loss"."""
    tags: dict[str, dict[float, float]] = {}
    for folder in reversed([log_folder, *resumed_from(log_folder)]):
        for tag, points in _scalars(folder).items():
            kept = {step: value for step, value in tags.get(tag, {}).items() if step < points[0][0]}
            tags[tag] = {**kept, **dict(points)}
    return {tag: sorted(points.items()) for tag, points in tags.items()}


def resumed_from(log_folder: Path) -> list[Path]:
    """Return the log folders that a run was resumed from, newest first; config.yaml names the checkpoint."""
    folders = [log_folder]
    while (checkpoint := _checkpoint_of(folders[-1])) is not None:
        earlier = checkpoint.parent.parent  # <log folder>/checkpoints/last.ckpt
        if earlier.resolve() in [folder.resolve() for folder in folders]:
            break
        folders.append(earlier)
    return folders[1:]


def _checkpoint_of(log_folder: Path) -> Path | None:
    config = log_folder / "config.yaml"
    if not config.is_file():
        return None
    try:
        options = yaml.load(read_content(config, "remove the log folder"), Loader=yaml.BaseLoader)  # strings only
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{config}: is not a valid config of a run: {one_line(str(error))}") from error
    path = options.get("ckpt_path") if isinstance(options, dict) else None
    if not isinstance(path, str) or not path.endswith(".ckpt"):
        return None
    # Relative to the working directory of the training, which is a parent of the log folder or the current directory.
    candidates = [*(parent / path for parent in log_folder.absolute().parents), Path(path)]
    return next((candidate for candidate in candidates if candidate.parent.parent.is_dir()), None)


def _scalars(folder: Path) -> dict[str, Points]:
    if not any(folder.glob(EVENTS)):
        return _scalars_of_csv(folder / CSV_FILE) if (folder / CSV_FILE).is_file() else {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1, "tensors": 1}).Reload()
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return {tag: points for tag, points in found.items() if points}


def _scalars_of_csv(file: Path) -> dict[str, Points]:
    """Return the scalars of a file of CSVLogger: a column for each tag, and empty fields for values not logged."""
    remedy = "remove the log folder"
    found: dict[str, Points] = {}
    try:
        for row in csv.DictReader(read_content(file, remedy).decode().splitlines()):
            for tag in (*TAGS, VELOCITY_LOSS):
                if row.get(tag):
                    found.setdefault(tag, []).append((float(row["step"]), float(row[tag])))
    except (ValueError, LookupError, TypeError, csv.Error) as error:
        raise UserError(f"{file}: is not a file of CSVLogger ({one_line(str(error))}): {remedy}") from error
    return found


def averaged(points: Points, num_parts: int) -> Points:
    """Return a long curve as the means of `num_parts` parts of equal length, and a short one unchanged."""
    if len(points) <= 2 * num_parts:
        return points
    bounds = [round(part * len(points) / num_parts) for part in range(num_parts + 1)]
    parts = [points[start:end] for start, end in pairwise(bounds)]
    return [(_mean([x for x, _ in part]), _mean([y for _, y in part])) for part in parts]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
