"""What a prepared folder says of itself, as JSON, and whether that is what a run asks for.

OUT/manifest.json                 content, layout, and every shard of every split; written last
OUT/unfinished.json               content and layout, in its place while the folder is being filled
OUT/<split>/shard-00000.json      written when all files of the shard are; a shard without it does not exist
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
MAX_ITEMS = 10**8  # of a split; its order is a permutation in memory
MAX_SHARD_SIZE = 10**6
MAX_CLASSES = 10**6

KeptDtype = Literal["float32", "float16"]
ShardName = Annotated[str, Field(pattern=r"^shard-[0-9]{5,9}\z")]
ShardFileName = Annotated[str, Field(pattern=r"^shard-[0-9]{5,9}\.[a-z_]{1,40}\.npy\z")]
NumItems = Annotated[int, Field(ge=0, le=MAX_ITEMS)]


class Content(Part):
    """What decides the numbers in a prepared set; training compares it with its own options.

    dataset: name of the data module's class.
    items: its `described()`.
    num_classes: classes of the condition, or None.
    autoencoder, text_encoder: their fingerprints; the latter None where there are no captions.
    """

    dataset: str
    items: dict[str, Any]
    num_classes: Annotated[int, Field(ge=1, le=MAX_CLASSES)] | None
    autoencoder: dict[str, Any]
    text_encoder: dict[str, Any] | None


class Layout(Part):
    """How it is kept: as memory-mapped arrays, the dtype of moments and caption features, and the items in a shard."""

    format: Literal["arrays"] = "arrays"
    dtype: KeptDtype
    shard_size: Annotated[int, Field(ge=1, le=MAX_SHARD_SIZE)]


class File(Part):
    """A file of a shard: its size and its SHA-256."""

    num_bytes: Annotated[int, Field(ge=0, le=2**53)]
    sha256: Sha256


class Skipped(Part):
    """An item that could not be read and was left out: its place in the data set's split, and why."""

    item: NumItems
    reason: str


class Shard(Part):
    """A finished shard: items first_item to first_item + num_items - 1 of the split, less the skipped ones."""

    name: ShardName
    first_item: NumItems
    num_items: Annotated[int, Field(ge=1, le=MAX_SHARD_SIZE)]
    files: dict[ShardFileName, File]
    skipped: list[Skipped]

    @model_validator(mode="after")
    def _check(self) -> "Shard":
        places = {skipped.item - self.first_item for skipped in self.skipped}
        if len(places) < len(self.skipped) or not all(0 <= place < self.num_items for place in places):
            raise ValueError("its skipped items are not among its items")
        if not all(name.startswith(f"{self.name}.") for name in self.files):
            raise ValueError("it names a file of another shard")
        if self.num_samples > sum(file.num_bytes for file in self.files.values()):
            raise ValueError("it has more samples than its files have bytes")
        return self

    @property
    def num_samples(self) -> int:
        """Samples in it."""
        return self.num_items - len(self.skipped)

    @property
    def items(self) -> list[int]:
        """Place in the data set's split of each sample."""
        left_out = {skipped.item for skipped in self.skipped}
        return [item for item in range(self.first_item, self.first_item + self.num_items) if item not in left_out]


class ShardRecord(Shard, Record):
    """A shard in a file of its own."""

    remedy: ClassVar[str] = "remove this file and run the same `prepare` again"


class Manifest(Record):
    """All that is known of a folder.

    content, layout: what is in it, and how.
    num_items: items of the data set in each split, those that were skipped among them.
    splits: the shards of each finished split, in order.
    """

    remedy: ClassVar[str] = "copy the prepared folder again, or prepare the set again into an empty folder"

    content: Content
    layout: Layout
    num_items: dict[Split, NumItems]
    splits: dict[Split, list[Shard]]

    @model_validator(mode="after")
    def _check(self) -> "Manifest":
        for split, shards in self.splits.items():
            first_item = 0
            for shard in shards:
                if shard.first_item != first_item:
                    raise ValueError(f"the shards of '{split}' do not follow each other")
                first_item += shard.num_items
            if self.num_items.get(split) != first_item:
                raise ValueError(f"the shards of '{split}' do not add up to its items")
            if len({shard.name for shard in shards}) < len(shards):
                raise ValueError(f"the shards of '{split}' have equal names")
        return self

    @property
    def shards(self) -> list[tuple[Split, Shard]]:
        """Every shard, with the name of its split."""
        return [(split, shard) for split, shards in self.splits.items() for shard in shards]

    @property
    def skipped(self) -> list[Skipped]:
        """Items left out, of all splits."""
        return [skipped for _, shard in self.shards for skipped in shard.skipped]


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a finished folder.

    Raises:
        UserError: there is none, or it cannot be used; the remedy is named.
    """
    path = folder / MANIFEST_NAME
    if (folder / UNFINISHED_NAME).is_file() and not path.is_file():
        raise UserError(f"{folder}: preparing it was cut off; run the same `prepare` command again to finish it")
    if not path.is_file():
        raise UserError(
            f"{folder}: holds no {MANIFEST_NAME}, so it is no prepared set; make one with "
            f"`python -m zigma_pl prepare NAME --root DIR --out {folder}`, or leave data.cache out"
        )
    return read_record(Manifest, path)


# --- comparison -------------------------------------------------------------------------------------------------------


def difference(kept: Content | Layout, wanted: Content | Layout) -> tuple[str, Any, Any] | None:
    """Return name, kept value and wanted value of the first field that differs, None if the two mean the same."""
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
        if key == "name" and same_weights:  # the same network under another path
            continue
        found = _difference(key if name == "items" else f"{name}.{key}", kept.get(key), wanted.get(key))
        if found is not None:
            return found
    return None


def _in_short(value: Any) -> Any:
    if isinstance(value, dict):
        return value.get("name", value)
    is_hash = isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef")
    return f"{value[:12]}..." if is_hash else value


def check_fits(folder: str | Path, manifest: Manifest, wanted: Content) -> None:
    """Compare a prepared set with the content that a training run's options ask for.

    Raises:
        UserError: they differ; it names the first field that does, both values, and the remedy.
    """
    found = difference(manifest.content, wanted)
    if found is not None:
        name, kept, asked = found
        raise UserError(
            f"data.cache {folder}: it was prepared with {name} {kept!r}, these options have {asked!r}; set the data "
            "option as it was, or prepare another folder with these options"
        )


def num_samples(shards: Sequence[Shard]) -> int:
    """Return the samples in all shards of a split."""
    return sum(shard.num_samples for shard in shards)
