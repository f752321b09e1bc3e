"""What a prepared folder says of itself, as JSON, and whether that is what a run asks for.

OUT/manifest.json                 content, layout, and every shard of every split; written last
OUT/unfinished.json               content and layout, in its place while the folder is being filled
OUT/<split>/shard-00000.json      written when all files of the shard are; a shard without it does not exist
OUT/<split>/shard-00000.*         the shard's files, by format
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zigma_pl.errors import UserError
from zigma_pl.files import written_whole

if TYPE_CHECKING:
    from zigma_pl.data.base import ImageDataModule

FORMAT_VERSION = 1  # to be raised when an older zigma_pl would misread what is written
MANIFEST_NAME = "manifest.json"
UNFINISHED_NAME = "unfinished.json"

Format = Literal["arrays", "webdataset"]
KeptDtype = Literal["float32", "float16"]


@dataclass(frozen=True)
class Content:
    """What decides the numbers in a prepared set; training compares it with its own options.

    dataset: name of the data module's class.
    items: its `described()`.
    num_classes: classes of the condition, or None.
    autoencoder, text_encoder: their fingerprints; the latter None where there are no captions.
    """

    dataset: str
    items: dict[str, Any]
    num_classes: int | None
    autoencoder: dict[str, Any]
    text_encoder: dict[str, Any] | None

    @classmethod
    def of(cls, data_module: "ImageDataModule") -> "Content":
        """Return the content that a data module's options ask for; loads the encoders' weights to hash them."""
        text_encoder = data_module.text_encoder
        content = cls(
            dataset=type(data_module).__name__,
            items=data_module.described(),
            num_classes=data_module.num_classes,
            autoencoder=data_module.frozen_autoencoder.fingerprint(),
            text_encoder=None if text_encoder is None else text_encoder.fingerprint(),
        )
        return cls(**json.loads(json.dumps(asdict(content))))  # tuples become lists, as they do on disk


@dataclass(frozen=True)
class Layout:
    """How it is kept: format of the shards, dtype of moments and caption features, items of the data set a shard."""

    format: Format
    dtype: KeptDtype
    shard_size: int


@dataclass(frozen=True)
class File:
    """A file of a shard: its size and its SHA-256."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Skipped:
    """An item that could not be read and was left out: its place in the data set's split, and why."""

    item: int
    reason: str


@dataclass(frozen=True)
class Shard:
    """A finished shard: items first_item to first_item + num_items - 1 of the split, less the skipped ones."""

    name: str
    first_item: int
    num_items: int
    files: dict[str, File]
    skipped: list[Skipped]

    @property
    def num_samples(self) -> int:
        """Samples in it."""
        return self.num_items - len(self.skipped)

    @property
    def items(self) -> list[int]:
        """Place in the data set's split of each sample."""
        left_out = {skipped.item for skipped in self.skipped}
        return [item for item in range(self.first_item, self.first_item + self.num_items) if item not in left_out]


@dataclass(frozen=True)
class Manifest:
    """All that is known of a folder.

    content, layout: what is in it, and how.
    num_items: items of the data set in each split, those that were skipped among them.
    splits: the shards of each finished split, in order.
    """

    content: Content
    layout: Layout
    num_items: dict[str, int]
    splits: dict[str, list[Shard]]

    def write(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        write_json(path, asdict(self))

    @property
    def shards(self) -> list[tuple[str, Shard]]:
        """Every shard, with the name of its split."""
        return [(split, shard) for split, shards in self.splits.items() for shard in shards]

    @property
    def skipped(self) -> list[Skipped]:
        """Items left out, of all splits."""
        return [skipped for _, shard in self.shards for skipped in shard.skipped]

    @classmethod
    def from_json(cls, text: str | bytes, where: str | Path) -> "Manifest":
        """Read it from the text of manifest.json; `where` names it in errors.

        Raises:
            UserError: it is no manifest, or a newer program has written it.
        """
        record = parse_json(text, where)
        try:
            splits = {name: [shard_from(entry) for entry in shards] for name, shards in record["splits"].items()}
            return cls(Content(**record["content"]), Layout(**record["layout"]), record["num_items"], splits)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{where}: is no manifest of a prepared set ({error!r}); prepare it again") from error


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
    return Manifest.from_json(path.read_bytes(), path)


def parse_json(text: str | bytes, where: str | Path) -> dict[str, Any]:
    """Return the JSON object of one of our files, without its version, which is checked."""
    try:
        record = json.loads(text)
        version = int(record.pop("format_version"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: is damaged, or not written by `prepare` ({error!r}); prepare it again") from error
    if version > FORMAT_VERSION:
        raise UserError(
            f"{where}: has format {version}, written by a newer zigma_pl; this one reads up to {FORMAT_VERSION}: "
            "update it, or prepare the set again"
        )
    return record


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write one of our JSON files, with the version of the format, whole or not at all."""
    with written_whole(path) as file:
        file.write(json.dumps({"format_version": FORMAT_VERSION, **record}, indent=1).encode())


def shard_from(record: dict[str, Any]) -> Shard:
    """Return the shard that a JSON object describes; a file name with a folder in it is refused."""
    files = {name: File(**entry) for name, entry in record["files"].items()}
    outside = [name for name in files if name in ("", ".", "..") or "/" in name or "\\" in name]
    if outside:
        raise UserError(f"shard {record['name']!r}: file name {outside[0]!r} leaves its folder; prepare the set again")
    skipped = [Skipped(**entry) for entry in record["skipped"]]
    return Shard(record["name"], int(record["first_item"]), int(record["num_items"]), files, skipped)


# --- comparison -------------------------------------------------------------------------------------------------------


def difference(kept: Content | Layout, wanted: Content | Layout) -> tuple[str, Any, Any] | None:
    """Return name, kept value and wanted value of the first field that differs, None if the two mean the same."""
    assert type(kept) is type(wanted)
    for field in fields(kept):
        found = _difference(field.name, getattr(kept, field.name), getattr(wanted, field.name))
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


def check_fits(folder: str | Path, manifest: Manifest, data_module: "ImageDataModule") -> None:
    """Compare a prepared set with a training run's options.

    Raises:
        UserError: they differ; it names the first field that does, both values, and the remedy.
    """
    found = difference(manifest.content, Content.of(data_module))
    if found is not None:
        name, kept, wanted = found
        raise UserError(
            f"data.cache {folder}: it was prepared with {name} {kept!r}, these options have {wanted!r}; set the data "
            "option as it was, or prepare another folder with these options"
        )


def num_samples(shards: Sequence[Shard]) -> int:
    """Return the samples in all shards of a split."""
    return sum(shard.num_samples for shard in shards)
