"""Training curves of a run, from the TensorBoard files in its log folder."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import yaml

from zigma_pl.core.errors import UserError
from zigma_pl.core.records import one_line, read_content

Points = list[tuple[float, float]]  # (step, value)


def read_curves(log_folder: Path) -> dict[str, Points]:
    """Return the scalars of a run, and of the runs that it was resumed from, by tag such as "train/loss"."""
    tags: dict[str, dict[float, float]] = {}
    for folder in reversed(_continued_from(log_folder)):
        for tag, points in _scalars(folder).items():
            kept = {step: value for step, value in tags.get(tag, {}).items() if step < points[0][0]}
            tags[tag] = {**kept, **dict(points)}
    return {tag: sorted(points.items()) for tag, points in tags.items()}


def _continued_from(log_folder: Path) -> list[Path]:
    """Return this folder and those that it was resumed from, newest first; config.yaml names the checkpoint."""
    folders = [log_folder]
    while (checkpoint := _checkpoint_of(folders[-1])) is not None:
        earlier = checkpoint.parent.parent  # <log folder>/checkpoints/last.ckpt
        if earlier.resolve() in [folder.resolve() for folder in folders]:
            break
        folders.append(earlier)
    return folders


def _checkpoint_of(log_folder: Path) -> Path | None:
    config = log_folder / "config.yaml"
    if not config.is_file():
        return None
    try:
        options = yaml.load(read_content(config, "remove the log folder"), Loader=yaml.BaseLoader)  # strings only
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{config}: is no valid config of a run: {one_line(str(error))}") from error
    path = options.get("ckpt_path") if isinstance(options, dict) else None
    if not isinstance(path, str) or not path.endswith(".ckpt"):
        return None
    # Relative to the working directory of the training, which is a parent of the log folder or the current directory.
    candidates = [*(parent / path for parent in log_folder.absolute().parents), Path(path)]
    return next((candidate for candidate in candidates if candidate.parent.parent.is_dir()), None)


def _scalars(folder: Path) -> dict[str, Points]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1, "tensors": 1}).Reload()
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return {tag: points for tag, points in found.items() if points}


def averaged(points: Points, num_parts: int) -> Points:
    """Return a long curve as the means of `num_parts` parts of equal length, and a short one unchanged."""
    if len(points) <= 2 * num_parts:
        return points
    bounds = [round(part * len(points) / num_parts) for part in range(num_parts + 1)]
    parts = [points[start:end] for start, end in pairwise(bounds)]
    return [(_mean([x for x, _ in part]), _mean([y for _, y in part])) for part in parts]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
