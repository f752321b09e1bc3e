"""Format `webdataset`: tar shards that the `webdataset` library reads too, from a folder or an object store.

Members of a sample, whose key is its place in the data set's split with nine digits:

    <key>.moments.npy           (2, [F,] 2 C, H, W)                     both mirrors; latent space only
    <key>.pixels.npy            ([F,] 3 or 1, height, width) uint8      pixel space only
    <key>.cls                   class id in decimal digits              where there are classes
    <key>.captions.json         ["...", ...]                            where there are captions
    <key>.token_counts.json     [T_0, T_1, ...]                         real tokens of each caption
    <key>.caption_features.npy  (T_0 + T_1 + ..., d)                    of all captions, one after the other
"""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from zigma_pl.data.prepared.arrays import check_sizes
from zigma_pl.data.prepared.gather import PreparedSamples
from zigma_pl.data.prepared.manifest import Shard
from zigma_pl.data.prepared.record import PreparedRecord
from zigma_pl.data.prepared.remote import fetch_checked
from zigma_pl.data.sharded_samples import ShardedSamples, ShardReader
from zigma_pl.data.tar_shards import ShardIndex, TarShard, open_shard
from zigma_pl.files import written_whole


def write_shard(folder: Path, name: str, records: Sequence[PreparedRecord], dtype: np.dtype) -> list[Path]:
    """Write a shard `<name>.tar`, whole or not at all; equal records give equal bytes. Returns its path.

    Args:
        folder: where to.
        name: stem of the file.
        records: samples of the shard, at least one.
        dtype: of moments and caption features.
    """
    path = folder / f"{name}.tar"
    with written_whole(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for record in records:
            for field, content in _members(record, dtype):
                member = tarfile.TarInfo(f"{record.index:09d}.{field}")  # owner and time are 0, mode is 0644
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return [path]


def _members(record: PreparedRecord, dtype: np.dtype) -> Iterator[tuple[str, bytes]]:
    if record.moments is not None:
        yield "moments.npy", _npy(record.moments, dtype)
    if record.pixels is not None:
        yield "pixels.npy", _npy(record.pixels, np.dtype(np.uint8))
    if record.class_id is not None:
        yield "cls", str(record.class_id).encode()
    if record.captions is not None:
        assert record.caption_features is not None
        yield "captions.json", json.dumps(record.captions).encode()
        yield "token_counts.json", json.dumps([len(rows) for rows in record.caption_features]).encode()
        yield "caption_features.npy", _npy(np.concatenate(record.caption_features), dtype)


def _npy(array: np.ndarray, dtype: np.dtype) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(array, dtype), version=(1, 0), allow_pickle=False)
    return stream.getvalue()


class TarSplit(ShardedSamples, PreparedSamples):
    """A split in format `webdataset`. A worker maps a shard into memory, or holds it there, and reads from it in place.

    Args:
        location: folder of the split, or its address, see `remote.fetch`.
        shards: from the manifest.
        keep_in: folder to keep fetched shards in, with room for all of them. Without it every worker fetches the shards
            that it reads from, each time anew.
        draws: seed, mirroring and caption length, see `PreparedSamples`.

    Raises:
        UserError: a file is missing, or has another size than the manifest says.
    """

    def __init__(
        self, location: str | Path, shards: Sequence[Shard], keep_in: Path | None = None, **draws: Any
    ) -> None:
        PreparedSamples.__init__(self, **draws)
        if isinstance(location, Path):
            for shard in shards:
                check_sizes(location, shard)
        sizes = [shard.num_samples for shard in shards]
        ShardedSamples.__init__(self, ShardReader(sizes, partial(_open_number, location, list(shards), keep_in)))

    def records(self, indices: Sequence[int]) -> list[PreparedRecord]:
        """Return views of the shards."""
        return [_record(index, *self.reader.locate(index)) for index in indices]


def _open_number(
    location: str | Path, shards: Sequence[Shard], keep_in: Path | None, number: int, index: ShardIndex | None
) -> TarShard:
    """Map a shard into memory, fetching it before where that is needed."""
    [(name, expected)] = shards[number].files.items()
    if isinstance(location, Path):
        return open_shard(location / name, index)
    content = fetch_checked(location, name, expected, keep_in)
    return open_shard(content, index) if isinstance(content, Path) else TarShard(name, content, index)


def _record(index: int, shard: TarShard, place: int) -> PreparedRecord:
    captions, features = None, None
    if shard.has(place, "captions.json"):
        captions = shard.json(place, "captions.json")
        rows = shard.array(place, "caption_features.npy")
        starts = accumulate(shard.json(place, "token_counts.json"), initial=0)
        features = [rows[start:end] for start, end in pairwise(starts)]
    return PreparedRecord(
        index,
        pixels=shard.array(place, "pixels.npy") if shard.has(place, "pixels.npy") else None,
        moments=shard.array(place, "moments.npy") if shard.has(place, "moments.npy") else None,
        class_id=shard.integer(place, "cls") if shard.has(place, "cls") else None,
        captions=captions,
        caption_features=features,
    )
