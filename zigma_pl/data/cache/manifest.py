"""The manifest of a prepared folder, as JSON, and its comparison with the options of a run.

OUT/manifest.json                 content, layout, and every shard of every split; written last
OUT/unfinished.json               content and layout; replaces the manifest while the folder is being written
OUT/<split>/shard-00000.json      written after all files of the shard; a shard without it is ignored
OUT/<split>/shard-00000.*.npy     the shard's files
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from zigma_pl.core.errors import UserError
from zigma_pl.core.records import Part, Record, Sha256, read_record
from zigma_pl.data.samples import Split

MANIFEST_NAME = "manifest.json"
UNFINISHED_NAME = "unfinished.json"
MAX_ITEMS = 10**8  # items of a split, whose permutation is kept in memory
MAX_SHARD_SIZE = 10**6
MAX_CLASSES = 10**6
# Options whose values prepared folders and result records store under a former name.
RECORDED_NAMES = {"synthetic": "standin", "num_synthetic_items": "standin_num_items"}
CURRENT_NAMES = {former: name for name, former in RECORDED_NAMES.items()}

KeptDtype = Literal["float32", "float16"]
ShardName = Annotated[str, Field(pattern=r"^shard-[0-9]{5,9}\z")]
ShardFileName = Annotated[str, Field(pattern=r"^shard-[0-9]{5,9}\.[a-z_]{1,40}\.npy\z")]
NumItems = Annotated[int, Field(ge=0, le=MAX_ITEMS)]


class Content(Part):
    """Everything that determines the values in a prepared data set; training compares it with its own options.

    dataset: name of the data module's class.
    items: the data module's `described()`.
    num_classes: number of classes, None without classes.
    autoencoder, text_encoder: fingerprints of the encoders; text_encoder is None without captions.
    """

    dataset: str
    items: dict[str, Any]
    num_classes: Annotated[int, Field(ge=1, le=MAX_CLASSES)] | None
    autoencoder: dict[str, Any]
    text_encoder: dict[str, Any] | None


class ShardLayout(Part):
    """How the data is stored: file format, dtype of moments and caption features, and items per shard."""

    format: Literal["arrays"] = "arrays"
    dtype: KeptDtype
    shard_size: Annotated[int, Field(ge=1, le=MAX_SHARD_SIZE)]


class File(Part):
    """Size and SHA-256 of a shard's file."""

    num_bytes: Annotated[int, Field(ge=0, le=2**53)]
    sha256: Sha256


class Skipped(Part):
    """An item that could not be read and was skipped: its index in the data set's split, and the reason."""

    item: NumItems
    reason: str


class Shard(Part):
    """A finished shard: items first_item to first_item + num_items - 1 of the split, without the skipped ones."""

    name: ShardName
    first_item: NumItems
    num_items: Annotated[int, Field(ge=1, le=MAX_SHARD_SIZE)]
    files: dict[ShardFileName, File]
    skipped: list[Skipped]

    @model_validator(mode="after")
    def _check(self) -> "Shard":
        offsets = {skipped.item - self.first_item for skipped in self.skipped}
        if len(offsets) < len(self.skipped) or not all(0 <= offset < self.num_items for offset in offsets):
            raise ValueError("skipped items are not part of the shard")
        if not all(name.startswith(f"{self.name}.") for name in self.files):
            raise ValueError("a file belongs to another shard")
        if self.num_samples > sum(file.num_bytes for file in self.files.values()):
            raise ValueError("more samples than bytes")
        return self

    @property
    def num_samples(self) -> int:
        """Number of samples in the shard."""
        return self.num_items - len(self.skipped)

    @property
    def items(self) -> list[int]:
        """Index of each sample in the data set's split."""
        left_out = {skipped.item for skipped in self.skipped}
        return [item for item in range(self.first_item, self.first_item + self.num_items) if item not in left_out]


class ShardRecord(Shard, Record):
    """The JSON file of a single shard."""

    remedy: ClassVar[str] = "remove this file and run the same `prepare` again"


class Manifest(Record):
    """The manifest of a prepared folder.

    content, layout: what is stored, and how.
    class_names: names of classes 0, 1, ..., if known.
    num_items: items of the data set in each split, including skipped ones.
    splits: the shards of each finished split, in order.
    """

    remedy: ClassVar[str] = "copy the prepared folder again, or prepare the data set again into an empty folder"

    content: Content
    layout: ShardLayout
    class_names: list[str] | None = None
    num_items: dict[Split, NumItems]
    splits: dict[Split, list[Shard]]

    @model_validator(mode="after")
    def _check(self) -> "Manifest":
        for split, shards in self.splits.items():
            first_item = 0
            for shard in shards:
                if shard.first_item != first_item:
                    raise ValueError(f"the shards of '{split}' are not contiguous")
                first_item += shard.num_items
            if self.num_items.get(split) != first_item:
                raise ValueError(f"the shards of '{split}' do not cover all its items")
            if len({shard.name for shard in shards}) < len(shards):
                raise ValueError(f"two shards of '{split}' have the same name")
        return self

    @property
    def shards(self) -> list[tuple[Split, Shard]]:
        """Every shard, with the name of its split."""
        return [(split, shard) for split, shards in self.splits.items() for shard in shards]

    @property
    def skipped(self) -> list[Skipped]:
        """Skipped items of all splits."""
        return [skipped for _, shard in self.shards for skipped in shard.skipped]


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a finished folder.

    Raises:
        UserError: the manifest is missing or invalid.
    """
    path = folder / MANIFEST_NAME
    if (folder / UNFINISHED_NAME).is_file() and not path.is_file():
        raise UserError(
            f"{folder} is incomplete, as `prepare` was interrupted: run the same command again to finish it"
        )
    if not path.is_file():
        raise UserError(
            f"{folder} is not a prepared data set, as it has no {MANIFEST_NAME}: create one with "
            f"`python -m zigma_pl prepare NAME --root DIR --out {folder}`, or remove data.cache"
        )
    return read_record(Manifest, path)


# --- comparison -------------------------------------------------------------------------------------------------------


def difference(kept: Content | ShardLayout, wanted: Content | ShardLayout) -> tuple[str, Any, Any] | None:
    """Return name, stored value and wanted value of the first field that differs, None if both are equivalent."""
    assert type(kept) is type(wanted)
    for name in type(kept).model_fields:
        found = _difference(name, getattr(kept, name), getattr(wanted, name))
        if found is not None:
            return found
    return None


def _difference(name: str, kept: Any, wanted: Any) -> tuple[str, Any, Any] | None:
    if not (isinstance(kept, dict) and isinstance(wanted, dict)):
        return None if kept == wanted else (name, _in_short(kept), _in_short(wanted))
    weights = kept.get("weights_sha256")
    same_weights = weights is not None and weights == wanted.get("weights_sha256")
    for key in dict.fromkeys([*kept, *wanted]):
        if key == "name" and same_weights:  # the same weights under another path
            continue
        field = CURRENT_NAMES.get(key, key) if name == "items" else f"{name}.{key}"
        found = _difference(field, kept.get(key), wanted.get(key))
        if found is not None:
            return found
    return None


def _in_short(value: Any) -> Any:
    if isinstance(value, dict):
        return value.get("name", value)
    is_hash = isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef")
    return f"{value[:12]}..." if is_hash else value


def check_fits(folder: str | Path, manifest: Manifest, wanted: Content) -> None:
    """Compare a prepared data set with the content that the options of a training run require.

    Raises:
        UserError: they differ; the message gives the first field that does, both values, and the remedy.
    """
    found = difference(manifest.content, wanted)
    if found is not None:
        name, kept, asked = found
        raise UserError(
            f"data.cache {folder} was prepared with {name} {kept!r}, but this run has {asked!r}: use the former value, "
            "or prepare another folder with the current options"
        )


def num_samples(shards: Sequence[Shard]) -> int:
    """Return the number of samples in all shards of a split."""
    return sum(shard.num_samples for shard in shards)
