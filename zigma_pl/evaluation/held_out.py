"""What scores need of the held-out real items: their pictures, and their classes and captions as conditions."""

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
NUM_PROBED = 16  # items that tell one data set from another, without reading all of it


class RealPictures(Dataset[Tensor]):
    """The real pictures of a split, uint8 (3 or 1, height, width), or clips (F, 3, height, width), in its order.

    They are never an autoencoder's reconstructions: of a prepared set that holds latents alone, the data set itself is
    read.

    Args:
        datamodule: whose data.
        split: which split.

    Raises:
        UserError: the real pictures are not there.
    """

    def __init__(self, datamodule: ImageDataModule, split: Split) -> None:
        self._prepared: PreparedSamples | None = None
        self._items: PixelDataset | None = None
        manifest = datamodule.prepared
        if manifest is not None and isinstance(datamodule.frozen_autoencoder, IdentityAutoencoder):
            samples = datamodule.samples(split)
            assert isinstance(samples, PreparedSamples)
            self._prepared, self._places = samples, range(len(samples))
        elif manifest is not None:
            self._items = _items_behind(datamodule, split)
            self._places = _places(manifest, split)
        else:
            self._items = datamodule.pixel_items(split)
            self._places = range(len(self._items))

    _places: Sequence[int]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Tensor:
        place = self._places[index]
        if self._items is not None:
            return self._items[place].pixels
        assert self._prepared is not None
        pixels = self._prepared.records([place])[0].pixels
        assert pixels is not None
        return torch.tensor(pixels)


def _items_behind(datamodule: ImageDataModule, split: Split) -> PixelDataset:
    try:
        return datamodule.pixel_items(split)
    except UserError as error:
        raise UserError(
            f"data.cache {datamodule.cache}: holds latents alone, and scores compare samples with real pictures, which "
            f"are not there either: {error}"
        ) from error


def _places(manifest: Manifest, split: Split) -> list[int]:
    return [item for shard in manifest.splits[split] for item in shard.items]


class RealChunk(NamedTuple):
    """Real pictures (n, ...) and their places in the split, (n,)."""

    pictures: Tensor
    sample_ids: Tensor


def real_chunks(pictures: RealPictures, num_workers: int, rank: int = 0, world_size: int = 1) -> Iterator[RealChunk]:
    """Yield a process's share of the pictures, in the same chunks whatever the number of processes."""
    starts = range(rank * CHUNK_SIZE, len(pictures), world_size * CHUNK_SIZE)
    batches = [list(range(start, min(start + CHUNK_SIZE, len(pictures)))) for start in starts]
    # A generator of its own leaves the process's random state alone.
    loader: DataLoader[Any] = DataLoader(
        pictures, batch_sampler=batches, num_workers=num_workers, collate_fn=torch.stack, generator=torch.Generator()
    )
    for ids, batch in zip(batches, loader, strict=True):
        yield RealChunk(batch, torch.tensor(ids))


def describe_real_pictures(datamodule: ImageDataModule, split: Split, pictures: RealPictures) -> dict[str, Any]:
    """Return as plain values what the pictures are; of other ones it differs, wherever the files are."""
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
