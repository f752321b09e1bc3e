"""How many samples are in each shard of a folder: counted once, kept, and refused when the shards have changed."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from zigma_pl.data.tar_shards import open_shard
from zigma_pl.errors import UserError
from zigma_pl.files import written_whole

_FORMAT_VERSION = 1


@dataclass(frozen=True)
class ShardCount:
    """What is kept of a shard: size and time of the file by which a change shows, its samples, and fields of all."""

    num_bytes: int
    mtime_ns: int
    num_samples: int
    fields: list[str]


def count_samples(root: Path, index_folder: Path) -> dict[str, ShardCount]:
    """Return the count of every shard `*.tar` in a folder, in the order of their names.

    Args:
        root: folder of the shards; nothing is written there.
        index_folder: folder that keeps the counts, one file for each `root`.

    Raises:
        UserError: there are no shards, one cannot be read, the kept counts are of other shards, or cannot be written.
    """
    paths = sorted(root.glob("*.tar"))
    if not paths:
        raise UserError(f"'{root}' holds no shards (*.tar): set data.root to their folder")
    name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    index = index_folder / f"{root.resolve().name}-{name}.json"
    if index.is_file():
        return _read(index, paths)
    counts = {path.name: _count(path) for path in tqdm(paths, desc=f"counting samples in {root}", unit=" shards")}
    try:
        index_folder.mkdir(parents=True, exist_ok=True)
        with written_whole(index) as file:
            shards = {name: asdict(count) for name, count in counts.items()}
            file.write(json.dumps({"format_version": _FORMAT_VERSION, "root": str(root), "shards": shards}).encode())
    except OSError as error:
        raise UserError(
            f"cannot keep the counts of {root} in {index_folder} ({error.strerror}): set data.index_folder to a folder "
            "that can be written"
        ) from error
    return counts


def _count(path: Path) -> ShardCount:
    shard = open_shard(path)
    fields = [field for field, offsets in shard.index.offsets.items() if offsets.min(initial=0) >= 0]
    return ShardCount(*_state(path), len(shard), fields)


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _read(index: Path, paths: list[Path]) -> dict[str, ShardCount]:
    remedy = "remove it, and they will be counted again"
    try:
        record = json.loads(index.read_bytes())
        counts = {name: ShardCount(**entry) for name, entry in record["shards"].items()}
        if record["format_version"] != _FORMAT_VERSION:
            raise ValueError(f"format {record['format_version']}, this program reads {_FORMAT_VERSION}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} cannot be used ({error}): {remedy}") from error
    found = {path.name: _state(path) for path in paths}
    changed = sorted(
        name
        for name in found.keys() | counts.keys()
        if name not in found or name not in counts or found[name] != (counts[name].num_bytes, counts[name].mtime_ns)
    )
    if changed:
        raise UserError(
            f"{index} is of other shards than are in {paths[0].parent} now: {len(changed)} have changed, come or gone, "
            f"such as {changed[0]}; {remedy}"
        )
    return counts
