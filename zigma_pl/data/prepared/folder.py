"""The folder that `prepare` fills: beginning, going on after a kill, finishing."""

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from zigma_pl.data.prepared.manifest import (
    MANIFEST_NAME,
    UNFINISHED_NAME,
    File,
    Manifest,
    Shard,
    Skipped,
    difference,
    parse_json,
    shard_from,
    write_json,
)
from zigma_pl.errors import UserError
from zigma_pl.files import UNFINISHED, sha256


class Task(NamedTuple):
    """A shard to be made: items first_item to first_item + num_items - 1 of a split."""

    split: str
    first_item: int
    num_items: int
    number: int

    @property
    def name(self) -> str:
        """Stem of the shard's files."""
        return f"shard-{self.number:05d}"


def begin(folder: Path, wanted: Manifest, *, overwrite: bool) -> Manifest:
    """Make the folder ready for what is wanted, and return what it will hold, with splits of earlier runs.

    Args:
        folder: exists; what was prepared before may be in it.
        wanted: content, layout and number of items; no shards.
        overwrite: remove what was prepared before.

    Raises:
        UserError: something else is in the folder, or a set that was prepared with other options.
    """
    begun = _read_begun(folder)
    if begun is None:
        others = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
        if others:
            raise UserError(f"--out {folder}: holds other things, such as '{others[0]}'; choose an empty or new folder")
    elif overwrite:
        _remove(folder, begun)
    else:
        _check_same(folder, begun, wanted)
        wanted = Manifest(wanted.content, wanted.layout, {**begun.num_items, **wanted.num_items}, {})
    wanted.write(folder / UNFINISHED_NAME)
    for split in wanted.num_items:
        (folder / split).mkdir(exist_ok=True)
        remove_leftovers(folder, split)
    return wanted


def missing_tasks(folder: Path, manifest: Manifest, splits: Iterable[str]) -> list[Task]:
    """Return the shards of these splits that are still to be made."""
    missing = []
    for split in splits:
        num_items, size = manifest.num_items[split], manifest.layout.shard_size
        tasks = [
            Task(split, first, min(size, num_items - first), number)
            for number, first in enumerate(range(0, num_items, size))
        ]
        done = {shard.name for shard in finished_shards(folder, split)}
        missing += [task for task in tasks if task.name not in done]
    return missing


def finish(folder: Path, manifest: Manifest) -> Manifest:
    """Write the manifest with all splits that are whole, and return it."""
    found = {split: finished_shards(folder, split) for split in manifest.num_items}
    whole = {
        split: shards
        for split, shards in found.items()
        if sum(shard.num_items for shard in shards) == manifest.num_items[split]
    }
    num_items = {split: manifest.num_items[split] for split in whole}
    finished = Manifest(manifest.content, manifest.layout, num_items, whole)
    finished.write(folder / MANIFEST_NAME)
    (folder / UNFINISHED_NAME).unlink()
    return finished


def record_shard(folder: Path, task: Task, paths: Sequence[Path], skipped: list[Skipped]) -> None:
    """Declare a shard finished whose files are all written."""
    files = {path.name: File(path.stat().st_size, sha256(path)) for path in paths}
    shard = Shard(task.name, task.first_item, task.num_items, files, skipped)
    write_json(folder / task.split / f"{task.name}.json", asdict(shard))


def finished_shards(folder: Path, split: str) -> list[Shard]:
    """Return the shards of a split that are on disk in full length, in order."""
    records = sorted((folder / split).glob("shard-*.json"))
    shards = [_read_shard(path) for path in records]
    return [shard for shard in shards if _is_whole(folder / split, shard)]


def remove_leftovers(folder: Path, split: str) -> None:
    """Remove what belongs to no finished shard: a killed run has left it."""
    known = {name for shard in finished_shards(folder, split) for name in (f"{shard.name}.json", *shard.files)}
    for path in (folder / split).iterdir():
        if path.name not in known and path.name.startswith(("shard-", UNFINISHED)):
            path.unlink()
    for path in folder.glob(f"{UNFINISHED}*"):
        path.unlink()


def remove_shard(folder: Path, task: Task) -> None:
    """Remove every file of a shard."""
    for path in (folder / task.split).glob(f"{task.name}.*"):
        path.unlink()


def _read_begun(folder: Path) -> Manifest | None:
    for path in (folder / UNFINISHED_NAME, folder / MANIFEST_NAME):
        if path.is_file():
            return Manifest.from_json(path.read_bytes(), path)
    return None


def _check_same(folder: Path, begun: Manifest, wanted: Manifest) -> None:
    found = difference(begun.content, wanted.content) or difference(begun.layout, wanted.layout)
    for split in set(begun.num_items) & set(wanted.num_items):
        if begun.num_items[split] != wanted.num_items[split]:
            found = found or (f"number of items in '{split}'", begun.num_items[split], wanted.num_items[split])
    if found is not None:
        name, kept, asked = found
        raise UserError(
            f"--out {folder}: was begun with {name} {kept!r}, now it is {asked!r}; give the same options, another "
            "--out, or --overwrite to begin anew"
        )


def _remove(folder: Path, begun: Manifest) -> None:
    for name in (MANIFEST_NAME, UNFINISHED_NAME):
        (folder / name).unlink(missing_ok=True)
    for split in begun.num_items:
        shutil.rmtree(folder / split, ignore_errors=True)


def _read_shard(path: Path) -> Shard:
    try:
        return shard_from(parse_json(path.read_bytes(), path))
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: is damaged ({error!r}); remove it, and run again") from error


def _is_whole(folder: Path, shard: Shard) -> bool:
    sizes = {name: (folder / name).stat().st_size if (folder / name).is_file() else None for name in shard.files}
    return all(sizes[name] == file.num_bytes for name, file in shard.files.items())
