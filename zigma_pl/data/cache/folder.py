"""The folder that `prepare` writes: starting, resuming after an interruption, and finishing it."""

import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, get_args

from zigma_pl.core.errors import UserError
from zigma_pl.core.files import UNFINISHED, sha256
from zigma_pl.core.records import read_record, write_record
from zigma_pl.data.cache.manifest import (
    MANIFEST_NAME,
    UNFINISHED_NAME,
    File,
    Manifest,
    Shard,
    ShardRecord,
    Skipped,
    difference,
)
from zigma_pl.data.samples import Split


class Task(NamedTuple):
    """A shard to write: items first_item to first_item + num_items - 1 of a split."""

    split: Split
    first_item: int
    num_items: int
    shard_index: int

    @property
    def name(self) -> str:
        """Stem of the shard's file names."""
        return f"shard-{self.shard_index:05d}"


def begin(folder: Path, wanted: Manifest, *, overwrite: bool) -> Manifest:
    """Set up the folder for `wanted`, and return its manifest including the splits of earlier runs.

    Args:
        folder: existing folder; may contain the results of an earlier run.
        wanted: content, layout and numbers of items, without shards.
        overwrite: remove the results of earlier runs.

    Raises:
        UserError: the folder contains other files, or a data set prepared with other options.
    """
    for split in get_args(Split):
        if (folder / split).is_symlink():
            raise UserError(
                f"--out {folder}: '{split}' is a symbolic link, which is not followed: remove the link, or choose "
                "another --out"
            )
    begun = _read_begun(folder)
    if begun is None:
        others = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
        if others:
            raise UserError(f"--out {folder} contains other files, such as '{others[0]}': choose an empty folder")
    elif overwrite:
        _remove(folder, begun)
    else:
        _check_same(folder, begun, wanted)
        wanted = wanted.model_copy(update={"num_items": {**begun.num_items, **wanted.num_items}})
    write_record(wanted, folder / UNFINISHED_NAME)
    for split in wanted.num_items:
        (folder / split).mkdir(exist_ok=True)
        remove_leftovers(folder, split)
    return wanted


def missing_tasks(folder: Path, manifest: Manifest, splits: Iterable[Split]) -> list[Task]:
    """Return the shards of these splits that are not finished yet."""
    missing = []
    for split in splits:
        num_items, size = manifest.num_items[split], manifest.layout.shard_size
        tasks = [
            Task(split, first, min(size, num_items - first), index)
            for index, first in enumerate(range(0, num_items, size))
        ]
        done = {shard.name for shard in finished_shards(folder, split)}
        missing += [task for task in tasks if task.name not in done]
    return missing


def finish(folder: Path, manifest: Manifest) -> Manifest:
    """Write the manifest with all complete splits, and return it."""
    found = {split: finished_shards(folder, split) for split in manifest.num_items}
    whole = {
        split: shards
        for split, shards in found.items()
        if sum(shard.num_items for shard in shards) == manifest.num_items[split]
    }
    num_items = {split: manifest.num_items[split] for split in whole}
    finished = Manifest(
        content=manifest.content,
        layout=manifest.layout,
        class_names=manifest.class_names,
        num_items=num_items,
        splits=whole,
    )
    write_record(finished, folder / MANIFEST_NAME)
    (folder / UNFINISHED_NAME).unlink()
    return finished


def record_shard(folder: Path, task: Task, paths: Sequence[Path], skipped: list[Skipped]) -> None:
    """Mark a shard as finished, after all its files have been written."""
    files = {path.name: File(num_bytes=path.stat().st_size, sha256=sha256(path)) for path in paths}
    shard = ShardRecord(
        name=task.name, first_item=task.first_item, num_items=task.num_items, files=files, skipped=skipped
    )
    write_record(shard, folder / task.split / f"{task.name}.json")


def finished_shards(folder: Path, split: Split) -> list[Shard]:
    """Return, in order, the shards of a split that are complete on disk."""
    records = [read_record(ShardRecord, path) for path in sorted((folder / split).glob("shard-*.json"))]
    shards = [Shard.model_validate(record.model_dump(exclude={"format_version"})) for record in records]
    return [shard for shard in shards if _is_whole(folder / split, shard)]


def remove_leftovers(folder: Path, split: Split) -> None:
    """Remove files that belong to no finished shard, left by an interrupted run."""
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


def remove_unless_begun(folder: Path) -> bool:
    """Remove the files of a run that has not finished any shard; return False if the folder has finished shards."""
    if (folder / MANIFEST_NAME).exists() or any(folder.glob("*/shard-*.json")):
        return False
    (folder / UNFINISHED_NAME).unlink(missing_ok=True)
    for split in get_args(Split):
        with suppress(OSError):  # does not exist, or contains other files
            (folder / split).rmdir()
    return True


def _read_begun(folder: Path) -> Manifest | None:
    for path in (folder / UNFINISHED_NAME, folder / MANIFEST_NAME):
        if path.is_file():
            return read_record(Manifest, path)
    return None


def _check_same(folder: Path, begun: Manifest, wanted: Manifest) -> None:
    found = difference(begun.content, wanted.content) or difference(begun.layout, wanted.layout)
    for split in set(begun.num_items) & set(wanted.num_items):
        if begun.num_items[split] != wanted.num_items[split]:
            found = found or (f"number of items in '{split}'", begun.num_items[split], wanted.num_items[split])
    if found is not None:
        name, kept, asked = found
        raise UserError(
            f"--out {folder} was started with {name} {kept!r}, but it is now {asked!r}: use the same options, another "
            "--out, or --overwrite to start again"
        )


def _remove(folder: Path, begun: Manifest) -> None:
    for name in (MANIFEST_NAME, UNFINISHED_NAME):
        (folder / name).unlink(missing_ok=True)
    for split in begun.num_items:
        if (folder / split).exists():
            shutil.rmtree(folder / split)


def _is_whole(folder: Path, shard: Shard) -> bool:
    sizes = {name: (folder / name).stat().st_size if (folder / name).is_file() else None for name in shard.files}
    return all(sizes[name] == file.num_bytes for name, file in shard.files.items())
