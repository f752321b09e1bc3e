"""Format `arrays`: one memory-mapped NumPy file per field of each shard, so that reading a sample copies its bytes.

Fields of a shard of n samples with K captions in total; caption k has T_k tokens:

    pixels            (n, [F,] 3 or 1, height, width) uint8          pixel space only
    moments           (n, 2, [F,] 2 C, H, W)                         image and mirror image; latent space only
    class_ids         (n,) int64
    caption_starts    (n + 1,) int64                                 captions of sample i: starts[i] to starts[i + 1]
    token_starts      (K + 1,) int64                                 rows of caption_features, likewise
    text_starts       (K + 1,) int64                                 bytes of caption_text, likewise
    caption_features  (sum of T_k, d)
    caption_text      (bytes,) uint8                                 UTF-8
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from zigma_pl.core.errors import UserError
from zigma_pl.core.files import written_whole
from zigma_pl.data.cache.gather import PreparedSamples
from zigma_pl.data.cache.manifest import Shard, num_samples
from zigma_pl.data.cache.record import PreparedRecord
from zigma_pl.data.npy import map_npy

SAMPLE_FIELDS = {"pixels", "moments", "class_ids"}
CAPTION_FIELDS = {"caption_starts", "token_starts", "text_starts", "caption_features", "caption_text"}
BYTES = ("pixels", "caption_text")


def write_shard(folder: Path, name: str, records: Sequence[PreparedRecord], dtype: np.dtype) -> list[Path]:
    """Write a shard's files `<name>.<field>.npy`, each atomically; returns their paths.

    Args:
        folder: output folder.
        name: stem of the file names.
        records: samples of the shard, at least one.
        dtype: dtype of moments and caption features.
    """
    first, paths = records[0], []

    def write(field: str, rows: Iterable[Any], shape: tuple[int, ...], kind: Any) -> None:
        path = folder / f"{name}.{field}.npy"
        with written_whole(path) as file:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for row in rows:
                file.write(np.ascontiguousarray(row, kind).data)
        paths.append(path)

    num = len(records)
    if first.pixels is not None:
        write("pixels", (record.pixels for record in records), (num, *first.pixels.shape), np.uint8)
    if first.moments is not None:
        write("moments", (record.moments for record in records), (num, *first.moments.shape), dtype)
    if first.class_id is not None:
        write("class_ids", [[record.class_id for record in records]], (num,), np.int64)
    if first.captions is not None:
        _write_captions(records, write, dtype)
    return paths


def _write_captions(records: Sequence[PreparedRecord], write: Any, dtype: np.dtype) -> None:
    texts = [caption.encode() for record in records for caption in record.captions or ()]
    features = [rows for record in records for rows in record.caption_features or ()]
    assert len(texts) == len(features)
    counts = {
        "caption_starts": [len(record.captions or ()) for record in records],
        "token_starts": [len(rows) for rows in features],
        "text_starts": [len(text) for text in texts],
    }
    starts = {field: list(accumulate(lengths, initial=0)) for field, lengths in counts.items()}
    for field, values in starts.items():
        write(field, [values], (len(values),), np.int64)
    write("caption_features", features, (starts["token_starts"][-1], features[0].shape[-1]), dtype)
    write("caption_text", (np.frombuffer(text, np.uint8) for text in texts), (starts["text_starts"][-1],), np.uint8)


class ArraySplit(PreparedSamples):
    """A split in format `arrays`.

    Args:
        folder: folder of the split.
        shards: the split's shards in the manifest.
        num_classes: the manifest's number of classes; all class ids must be below it.
        draws: seed, mirroring and caption length, see `PreparedSamples`.

    Raises:
        UserError: a file is missing, or its size differs from the manifest; also later, when samples are read and a
            file's content is invalid.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], *, num_classes: int | None = None, **draws: Any) -> None:
        super().__init__(**draws)
        self.folder = folder
        self.num_classes = num_classes
        self.shards = [shard for shard in shards if shard.num_samples]
        for shard in self.shards:
            check_sizes(folder, shard)
        self._starts = np.cumsum([0, *(shard.num_samples for shard in self.shards)])
        self._mapped: dict[int, dict[str, np.ndarray]] = {}

    def __len__(self) -> int:
        return num_samples(self.shards)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": {}}  # each worker maps the files itself

    def item_names(self) -> Iterable[str]:
        """Return name and hash of every file; equal hashes mean equal samples."""
        return (f"{name} {file.sha256}" for shard in self.shards for name, file in shard.files.items())

    def records(self, indices: Sequence[int]) -> list[PreparedRecord]:
        """Return views of the mapped files."""
        places = np.asarray(indices)
        shards = np.searchsorted(self._starts, places, side="right") - 1
        rows = places - self._starts[shards]
        return [
            _record(index, self._fields(shard), row)
            for index, shard, row in zip(indices, shards.tolist(), rows.tolist(), strict=True)
        ]

    def _fields(self, shard_index: int) -> dict[str, np.ndarray]:
        if shard_index not in self._mapped:
            shard = self.shards[shard_index]
            fields = {name.split(".")[-2]: map_array(self.folder / name) for name in shard.files}
            fault = _fault(fields, shard.num_samples, self.max_caption_tokens, self.num_classes)
            if shard_index and fault is None and _shapes(fields) != _shapes(self._fields(0)):
                fault = "sample shapes differ from those of the first shard"
            if fault is not None:
                raise UserError(f"{self.folder / shard.name}.*.npy: {fault}: prepare or copy the data set again")
            self._mapped[shard_index] = fields
        return self._mapped[shard_index]


def _fault(
    fields: dict[str, np.ndarray], num_samples: int, max_tokens: int | None, num_classes: int | None
) -> str | None:
    """Return what is wrong with the fields of a shard, None if they are valid; the module docstring lists them."""
    names = fields.keys()
    if not names <= SAMPLE_FIELDS | CAPTION_FIELDS or not names & {"pixels", "moments"}:
        return f"unexpected set of fields {', '.join(sorted(names))}"
    if max_tokens is not None and not names >= CAPTION_FIELDS:
        return "captions are missing"
    if not all(len(fields[name]) == num_samples for name in SAMPLE_FIELDS & names):
        return f"expected {num_samples} samples"
    kinds = {name: "f" if name in ("moments", "caption_features") else "u" if name in BYTES else "i" for name in names}
    ndims = {"pixels": (4, 5), "moments": (5, 6), "caption_features": (2,)}
    for name, array in fields.items():
        if array.dtype.kind != kinds[name] or array.ndim not in ndims.get(name, (1,)):
            return f"{name} has wrong type or shape, {array.dtype} {array.shape}"
    if "class_ids" in fields and not 0 <= fields["class_ids"].min() <= fields["class_ids"].max() < (num_classes or 1):
        return f"class ids are not below {num_classes}"
    if names & CAPTION_FIELDS:
        return (
            _fault_of_captions(fields, num_samples, max_tokens) if names >= CAPTION_FIELDS else "captions are missing"
        )
    return None


def _fault_of_captions(fields: dict[str, np.ndarray], num_samples: int, max_tokens: int | None) -> str | None:
    num_captions = len(fields["token_starts"]) - 1
    ends = {
        "caption_starts": (num_samples, num_captions, 1),  # at least one caption per sample
        "token_starts": (num_captions, len(fields["caption_features"]), 0),
        "text_starts": (num_captions, len(fields["caption_text"]), 0),
    }
    for name, (num_parts, end, shortest) in ends.items():
        starts = fields[name]
        if len(starts) != num_parts + 1 or starts[0] != 0 or starts[-1] != end or (np.diff(starts) < shortest).any():
            return f"{name} are not valid offsets"
    if max_tokens is not None and (np.diff(fields["token_starts"]) > max_tokens).any():
        return f"a caption has more than {max_tokens} tokens"
    try:
        fields["caption_text"].tobytes().decode()
    except UnicodeDecodeError as error:
        return f"captions are not UTF-8 ({error.reason})"
    return None


def _shapes(fields: dict[str, np.ndarray]) -> dict[str, tuple[Any, ...]]:
    return {name: (array.dtype, *array.shape[1:]) for name, array in fields.items()}


def _record(index: int, fields: dict[str, np.ndarray], row: int) -> PreparedRecord:
    captions, features = None, None
    if "caption_starts" in fields:
        first, last = fields["caption_starts"][row : row + 2].tolist()
        captions = [
            part.tobytes().decode() for part in _parts(fields["caption_text"], fields["text_starts"], first, last)
        ]
        features = _parts(fields["caption_features"], fields["token_starts"], first, last)
    return PreparedRecord(
        index,
        pixels=fields["pixels"][row] if "pixels" in fields else None,
        moments=fields["moments"][row] if "moments" in fields else None,
        class_id=int(fields["class_ids"][row]) if "class_ids" in fields else None,
        captions=captions,
        caption_features=features,
    )


def _parts(values: np.ndarray, starts: np.ndarray, first: int, last: int) -> list[np.ndarray]:
    return [values[start:end] for start, end in pairwise(starts[first : last + 1].tolist())]


def check_sizes(folder: Path, shard: Shard) -> None:
    """Check that a shard's files exist and have the expected size, without reading them."""
    for name, file in shard.files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != file.num_bytes:
            found = "is missing" if size is None else f"has {size} bytes instead of {file.num_bytes}"
            raise UserError(f"{path} {found}: prepare the data set again with --overwrite, or copy it again")


def map_array(path: Path) -> np.ndarray:
    """Return a NumPy file's array as a read-only memory map.

    Raises:
        UserError: the file is missing, or is not a plain NumPy array.
    """
    try:
        array = map_npy(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a plain NumPy array ({error}): prepare the data set again with --overwrite"
        ) from error
    array.flags.writeable = False
    return array
