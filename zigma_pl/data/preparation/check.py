"""`prepare --check`: compare a prepared folder with its manifest, and the manifest with the data set."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zigma_pl.core.batch import RawBatch
from zigma_pl.core.errors import UserError
from zigma_pl.core.files import sha256
from zigma_pl.data.base import ImageDataModule
from zigma_pl.data.cache.manifest import Manifest, Shard, difference, num_samples
from zigma_pl.data.cache.reading import open_split
from zigma_pl.data.preparation.encode import RecordMaker
from zigma_pl.data.samples import PixelSamples, Split, collate

# Relative to the largest value. The same network rounds differently on another device and at other batch sizes.
TOLERANCES = {"float32": 1e-3, "float16": 4e-3}


def check_files(folder: Path, manifest: Manifest) -> Iterator[int]:
    """Compare the size and hash of every file with the manifest; yields the bytes read.

    Raises:
        UserError: a file differs or is missing.
    """
    for split, shard in manifest.shards:
        yield from _check_shard(folder / split, shard)


def _check_shard(folder: Path, shard: Shard) -> Iterator[int]:
    for name, file in shard.files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != file.num_bytes or sha256(path) != file.sha256:
            raise UserError(
                f"{path} {'has changed' if path.is_file() else 'is missing'}: remove {folder / shard.name}.json and "
                "run the same `prepare` command again to rewrite this shard"
            )
        yield file.num_bytes


def check_content(manifest: Manifest, data_module: ImageDataModule, folder: Path) -> None:
    """Compare the manifest's content with a data module's options.

    Raises:
        UserError: they differ; the message gives the first field that does.
    """
    found = difference(manifest.content, data_module.content())
    if found is not None:
        name, kept, asked = found
        raise UserError(f"--out {folder} was prepared with {name} {kept!r}, but the options now give {asked!r}")


def check_entries(
    folder: Path, manifest: Manifest, split: Split, data_module: ImageDataModule, device: torch.device, count: int
) -> float:
    """Encode some entries of a split again and compare them with the cache; returns the largest relative difference.

    Args:
        folder: the prepared folder.
        manifest: its manifest.
        split: name of the split.
        data_module: data module with the same content.
        device: device of the encoders.
        count: number of entries, evenly spaced over the split.

    Raises:
        UserError: an entry differs by more than rounding.
    """
    shards = manifest.splits[split]
    total = num_samples(shards)
    items = [item for shard in shards for item in shard.items]
    entries = sorted({i * (total - 1) // max(1, count - 1) for i in range(min(count, total))})
    text_encoder = data_module.text_encoder
    kept = open_split(
        folder,
        manifest,
        split,
        seed=0,
        horizontal_flip=True,
        max_caption_tokens=None if text_encoder is None else text_encoder.max_tokens,
    )
    if len(kept) != total:
        raise UserError(f"{folder / split} has {len(kept)} samples instead of {total}: prepare it again")
    live = PixelSamples(data_module.pixel_items(split), seed=0, horizontal_flip=True)
    largest = 0.0
    for entry in entries:
        wanted = _encoded(collate([live[entry, items[entry]]]), data_module, device)
        largest = max(
            largest, _compare(kept.__getitems__([(entry, entry)]), wanted, f"{folder / split}, entry {entry}")
        )
    if largest > TOLERANCES[manifest.layout.dtype]:
        raise UserError(
            f"{folder / split}: entries encoded again differ by {largest:.1e} of the largest value, so the data set or "
            "the encoders have changed: prepare it again with --overwrite"
        )
    return largest


def _encoded(raw: RawBatch, data_module: ImageDataModule, device: torch.device) -> RawBatch:
    """Return a batch of pixels in the form of a prepared batch."""
    make = RecordMaker(data_module.frozen_autoencoder, data_module.text_encoder, np.dtype("float32"), device)
    assert raw.images is not None
    if data_module.autoencoder != "identity":
        raw = raw._replace(images=None, moments=torch.from_numpy(make.moments(raw.images)[:, 0]))
    if data_module.text_encoder is not None and raw.captions is not None:
        features, mask = data_module.text_encoder(raw.captions, device)
        raw = raw._replace(caption_features=features.cpu(), caption_mask=mask.cpu())
    return raw


def _compare(kept: RawBatch, wanted: RawBatch, where: str) -> float:
    for name in ("class_ids", "captions", "caption_mask", "images"):
        one, other = getattr(kept, name), getattr(wanted, name)
        same = torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else one == other
        if not same:
            raise UserError(f"{where}: {name} differ from the data set: prepare it again with --overwrite")
    pairs = [(kept.moments, wanted.moments), (kept.caption_features, wanted.caption_features)]
    return max((_relative(one, other) for one, other in pairs if one is not None and other is not None), default=0.0)


def _relative(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().max() / other.abs().max().clamp(min=1e-6))
