"""The splits of a prepared set, whatever their format, in a folder or on an object store."""

from pathlib import Path
from typing import Any

from zigma_pl.data.prepared.arrays import ArraySplit
from zigma_pl.data.prepared.gather import PreparedSamples
from zigma_pl.data.prepared.manifest import MANIFEST_NAME, Manifest, read_manifest
from zigma_pl.data.prepared.remote import address_of, fetch, is_remote
from zigma_pl.errors import UserError


def open_manifest(location: str) -> Manifest:
    """Return the manifest of a prepared set.

    Args:
        location: folder, or address as in `remote.fetch`.

    Raises:
        UserError: there is none, or it cannot be used.
    """
    if not is_remote(location):
        return read_manifest(Path(location))
    return Manifest.from_json(fetch(location, MANIFEST_NAME), address_of(location, MANIFEST_NAME))


def open_split(
    location: str | Path, manifest: Manifest, split: str, *, keep_in: str | None = None, **draws: Any
) -> PreparedSamples:
    """Return a prepared split.

    Args:
        location: folder of what was prepared, or its address.
        manifest: its manifest.
        split: which split.
        keep_in: folder to keep the shards of an address in.
        draws: seed, horizontal_flip and max_caption_tokens, see `PreparedSamples`.

    Raises:
        UserError: the split was not prepared, or files of it are missing.
    """
    if split not in manifest.splits:
        raise UserError(
            f"data.cache {location}: holds {', '.join(manifest.splits)}, not '{split}'; run `prepare` into the same "
            f"folder with --splits {split}"
        )
    shards, remote = manifest.splits[split], is_remote(str(location))
    if manifest.layout.format == "arrays":
        if remote:
            raise UserError(f"data.cache {location}: only `prepare --format webdataset` can be read from an address")
        return ArraySplit(Path(location) / split, shards, **draws)
    from zigma_pl.data.prepared.webdataset import TarSplit

    if not remote:
        return TarSplit(Path(location) / split, shards, **draws)
    kept = None if keep_in is None else Path(keep_in)
    return TarSplit(address_of(str(location), f"{split}/{{}}"), shards, kept, **draws)
