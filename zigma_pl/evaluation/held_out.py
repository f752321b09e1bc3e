"""The held-out real images or clips that samples are compared with."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zigma_pl.core.errors import UserError
from zigma_pl.data.base import ImageDataModule, Split
from zigma_pl.data.cache.gather import PreparedSamples
from zigma_pl.data.cache.manifest import Manifest
from zigma_pl.data.images import PixelDataset
from zigma_pl.data.picture_files import evenly_spaced
from zigma_pl.encoders.autoencoder import IdentityAutoencoder

CHUNK_SIZE = 32
NUM_PROBED = 16  # number of items whose hash identifies a data set without reading all of it


class RealPictures(Dataset[Tensor]):
    """The real images of a split in order, uint8 (3 or 1, height, width), or clips (F, 3, height, width).

    These are never reconstructions of an autoencoder: if the cache has only latents, the data set itself is read.

    Args:
        datamodule: data module of the images.
        split: name of the split.

    Raises:
        UserError: the real images are missing.
    """

    def __init__(self, datamodule: ImageDataModule, split: Split) -> None:
        self._prepared: PreparedSamples | None = None
        self._items: PixelDataset | None = None
        manifest = datamodule.prepared
        if manifest is not None and isinstance(datamodule.frozen_autoencoder, IdentityAutoencoder):
            samples = datamodule.samples(split)
            assert isinstance(samples, PreparedSamples)
            self._prepared, self._indices = samples, range(len(samples))
        elif manifest is not None:
            self._items = _original_items(datamodule, split)
            self._indices = _prepared_items(manifest, split)
        else:
            self._items = datamodule.pixel_items(split)
            self._indices = range(len(self._items))

    _indices: Sequence[int]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Tensor:
        item = self._indices[index]
        if self._items is not None:
            return self._items[item].pixels
        assert self._prepared is not None
        pixels = self._prepared.records([item])[0].pixels
        assert pixels is not None
        return torch.tensor(pixels)


def _original_items(datamodule: ImageDataModule, split: Split) -> PixelDataset:
    try:
        return datamodule.pixel_items(split)
    except UserError as error:
        raise UserError(
            f"data.cache {datamodule.cache} has only latents, so scoring needs the real images of the data set: {error}"
        ) from error


def _prepared_items(manifest: Manifest, split: Split) -> list[int]:
    return [item for shard in manifest.splits[split] for item in shard.items]


class RealChunk(NamedTuple):
    """Real images (n, ...) and their indices in the split, (n,)."""

    pictures: Tensor
    sample_ids: Tensor


def real_chunks(pictures: RealPictures, num_workers: int, rank: int = 0, world_size: int = 1) -> Iterator[RealChunk]:
    """Yield a process's chunks of the images; chunks do not depend on the number of processes."""
    starts = range(rank * CHUNK_SIZE, len(pictures), world_size * CHUNK_SIZE)
    batches = [list(range(start, min(start + CHUNK_SIZE, len(pictures)))) for start in starts]
    # With its own generator: otherwise the loader advances the global random state.
    loader: DataLoader[Any] = DataLoader(
        pictures, batch_sampler=batches, num_workers=num_workers, collate_fn=torch.stack, generator=torch.Generator()
    )
    for ids, batch in zip(batches, loader, strict=True):
        yield RealChunk(batch, torch.tensor(ids))


def describe_real_pictures(datamodule: ImageDataModule, split: Split, pictures: RealPictures) -> dict[str, Any]:
    """Return plain values that identify the images, independent of the location of the files."""
    digest = hashlib.sha256()
    for index in evenly_spaced(len(pictures), NUM_PROBED):
        picture = pictures[index]
        digest.update(f"{tuple(picture.shape)}".encode() + picture.contiguous().numpy().tobytes())
    return {
        "dataset": type(datamodule).__name__,
        "split": split,
        "num_pictures": len(pictures),
        "items": datamodule.described(),
        "some_pixels_sha256": digest.hexdigest(),
    }
