"""Batches from prepared records, equal to those of training without a cache."""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from zigma_pl.core.batch import RawBatch
from zigma_pl.data.cache.record import PreparedRecord
from zigma_pl.data.order import SampleKey
from zigma_pl.data.samples import Sample, SplitSamples, draw


class PreparedSamples(SplitSamples):
    """A prepared split as the loader reads it, one batch at a time.

    Mirroring and caption choice depend on (seed, sample id) exactly as in `PixelSamples`, so training with a cache sees
    the same data as training without one.

    Args:
        seed: seed of mirroring and caption choice.
        horizontal_flip: mirror a random half of the samples.
        max_caption_tokens: length that captions are padded to, in tokens; None without captions.
    """

    def __init__(self, *, seed: int, horizontal_flip: bool, max_caption_tokens: int | None) -> None:
        self.seed = seed
        self.horizontal_flip = horizontal_flip
        self.max_caption_tokens = max_caption_tokens

    @abstractmethod
    def records(self, indices: Sequence[int]) -> list[PreparedRecord]:
        """Return the records at these indices of the split, in this order; their arrays may be memory maps."""

    def __getitem__(self, key: SampleKey) -> Sample:
        raise TypeError("prepared samples are read in batches: call __getitems__([key, ...])")

    def __getitems__(self, keys: Sequence[SampleKey]) -> RawBatch:
        """Return the batch of these (sample id, index) pairs."""
        records = self.records([index for _, index in keys])
        mirrored = [self.horizontal_flip and draw(self.seed, "flip", sample_id, 2) == 1 for sample_id, _ in keys]
        # Copied in their order on disk.
        order = sorted(range(len(keys)), key=lambda position: keys[position][1])
        pixels = [_mirror(record.pixels, flip) for record, flip in zip(records, mirrored, strict=True)]
        moments = [_pick(record.moments, int(flip)) for record, flip in zip(records, mirrored, strict=True)]
        class_ids = [record.class_id for record in records if record.class_id is not None]
        captions, features, mask = self._captions(keys, records, order)
        return RawBatch(
            sample_ids=torch.tensor([sample_id for sample_id, _ in keys]),
            images=_stack(pixels, order),
            moments=_stack(moments, order),
            class_ids=torch.tensor(class_ids) if class_ids else None,
            captions=captions,
            caption_features=features,
            caption_mask=mask,
        )

    def _captions(
        self, keys: Sequence[SampleKey], records: list[PreparedRecord], order: list[int]
    ) -> tuple[list[str] | None, Tensor | None, Tensor | None]:
        if self.max_caption_tokens is None or not records or records[0].caption_features is None:
            return None, None, None
        texts: list[str] = []
        features: list[np.ndarray] = []
        for (sample_id, _), record in zip(keys, records, strict=True):
            assert record.captions is not None
            assert record.caption_features is not None
            chosen = draw(self.seed, "caption", sample_id, len(record.captions))
            texts.append(record.captions[chosen])
            features.append(record.caption_features[chosen])
        padded = np.zeros((len(keys), self.max_caption_tokens, features[0].shape[-1]), features[0].dtype)
        mask = np.zeros(padded.shape[:2], dtype=bool)
        for position in order:
            padded[position, : len(features[position])] = features[position]
            mask[position, : len(features[position])] = True
        return texts, torch.from_numpy(padded), torch.from_numpy(mask)


def _mirror(pixels: np.ndarray | None, flip: bool) -> np.ndarray | None:
    return pixels[..., ::-1] if flip and pixels is not None else pixels


def _pick(moments: np.ndarray | None, mirror: int) -> np.ndarray | None:
    return None if moments is None else moments[mirror]


def _stack(rows: Sequence[np.ndarray | None], order: Sequence[int]) -> Tensor | None:
    if not rows or rows[0] is None:
        return None
    stacked = np.empty((len(rows), *rows[0].shape), rows[0].dtype)
    for position in order:
        stacked[position] = rows[position]
    return torch.from_numpy(stacked)
