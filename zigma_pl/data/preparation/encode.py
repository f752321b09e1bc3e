"""From the items of a data set to prepared records: workers decode, and the frozen encoders run on the device."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zigma_pl.core.errors import UserError
from zigma_pl.data.cache.manifest import Skipped
from zigma_pl.data.cache.record import PreparedRecord
from zigma_pl.data.images import PixelDataset, PixelItem
from zigma_pl.encoders.autoencoder import Autoencoder, IdentityAutoencoder
from zigma_pl.encoders.text_base import TextEncoder

_CAPTIONS_PER_CALL = 256


class DecodedBatch(NamedTuple):
    """A worker's result: the items that could be read, with their pixels in one tensor, and those that could not."""

    indices: list[int]
    pixels: Tensor | None
    class_ids: list[int | None]
    captions: list[list[str] | None]
    bad: list[Skipped]


class _Decoding(Dataset[tuple[int, PixelItem | str]]):
    """Returns an item, or the reason it cannot be read: as a value, since DataLoader adds tracebacks to exceptions."""

    def __init__(self, items: PixelDataset) -> None:
        self.items = items

    def __getitem__(self, index: int) -> tuple[int, PixelItem | str]:
        try:
            return index, self.items[index]
        except UserError as error:
            return index, str(error)


def _collate(entries: list[tuple[int, PixelItem | str]]) -> DecodedBatch:
    good = [(index, item) for index, item in entries if isinstance(item, PixelItem)]
    return DecodedBatch(
        [index for index, _ in good],
        torch.stack([item.pixels for _, item in good]) if good else None,
        [item.class_id for _, item in good],
        [item.captions for _, item in good],
        [Skipped(item=index, reason=item) for index, item in entries if isinstance(item, str)],
    )


class RecordMaker:
    """Runs the frozen encoders.

    Args:
        autoencoder: computes the moments; with `IdentityAutoencoder`, pixels are stored instead.
        text_encoder: encoder of captions, None without captions.
        dtype: dtype of moments and caption features.
        device: device of the encoders.
    """

    def __init__(
        self, autoencoder: Autoencoder, text_encoder: TextEncoder | None, dtype: np.dtype, device: torch.device
    ) -> None:
        self.autoencoder = autoencoder
        self.text_encoder = text_encoder
        self.dtype = dtype
        self.device = device

    def __call__(self, batch: DecodedBatch) -> list[PreparedRecord]:
        """Return the records of a batch, in the same order."""
        if batch.pixels is None:
            return []
        in_pixel_space = isinstance(self.autoencoder, IdentityAutoencoder)
        pixels = batch.pixels.numpy() if in_pixel_space else None
        # On a GPU, the moments are computed while the CPU tokenises the captions.
        encoded = None if in_pixel_space else self._encode(batch.pixels)
        features = self.caption_features(batch.captions)
        moments = None if encoded is None else self._kept(encoded, "autoencoder")
        return [
            PreparedRecord(
                index,
                None if pixels is None else pixels[i],
                None if moments is None else moments[i],
                batch.class_ids[i],
                batch.captions[i],
                features[i],
            )
            for i, index in enumerate(batch.indices)
        ]

    def moments(self, pixels: Tensor) -> np.ndarray:
        """Encode uint8 pixels (B, [F,] 3 or 1, height, width) and their mirror images to (B, 2, [F,] 2 C, H, W).

        Raises:
            UserError: a value is not finite, or too large for the stored dtype.
        """
        return self._kept(self._encode(pixels), "autoencoder")

    @torch.no_grad()
    def _encode(self, pixels: Tensor) -> Tensor:
        scaled = pixels.to(self.device).float() / 127.5 - 1
        both = [self.autoencoder.moments(view.flatten(0, -4)) for view in (scaled, scaled.flip(-1))]
        return torch.stack([part.unflatten(0, pixels.shape[:-3]) for part in both], dim=1)

    @torch.no_grad()
    def caption_features(self, captions: Sequence[list[str] | None]) -> list[list[np.ndarray] | None]:
        """Encode the captions of each item; each caption gives (num_tokens, d), without padding."""
        if self.text_encoder is None:
            return [None] * len(captions)
        flat = [caption for item in captions for caption in item or ()]
        rows: list[np.ndarray] = []
        for start in range(0, len(flat), _CAPTIONS_PER_CALL):
            features, mask = self.text_encoder(flat[start : start + _CAPTIONS_PER_CALL], self.device)
            lengths = mask.sum(dim=1)
            # Padding must follow the tokens, so that it can be removed here and added again when reading.
            assert torch.equal(mask, torch.arange(mask.shape[1], device=mask.device) < lengths[:, None])
            kept = self._kept(features, "text encoder")
            rows += [row[:length].copy() for row, length in zip(kept, lengths.tolist(), strict=True)]
        remaining = iter(rows)
        return [None if item is None else [next(remaining) for _ in item] for item in captions]

    def _kept(self, values: Tensor, encoder: str) -> np.ndarray:
        kept = values.to(torch.float16 if self.dtype == np.float16 else torch.float32)
        if not torch.isfinite(kept).all():
            raise UserError(
                f"the {encoder} returned values that {self.dtype} cannot represent: use --dtype float32 or "
                "other weights"
            )
        return kept.cpu().numpy()


def prepare_items(
    items: PixelDataset, indices: Sequence[int], make_records: RecordMaker, *, batch_size: int, num_workers: int
) -> Iterator[PreparedRecord | Skipped]:
    """Yield, for every index in order, its record or the reason it was skipped."""
    loader: DataLoader[tuple[int, PixelItem | str]] = DataLoader(
        _Decoding(items),
        batch_size=batch_size,
        sampler=indices,
        collate_fn=_collate,
        num_workers=num_workers,
        generator=torch.Generator(),  # keeps the loader from advancing the global random state
    )
    for batch in loader:
        made: list[PreparedRecord | Skipped] = [*make_records(batch), *batch.bad]
        yield from sorted(made, key=_index_of)


def _index_of(entry: PreparedRecord | Skipped) -> int:
    return entry.index if isinstance(entry, PreparedRecord) else entry.item
