"""Latents and caption features that somebody else's program has stored in tar shards, instead of moments and captions.

Axes: B batch, F frames (videos only), C channels, H W latent grid, T caption tokens.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zigma_pl.batch import RawBatch
from zigma_pl.data.order import SampleKey
from zigma_pl.data.samples import ConditionSamples, Sample, draw
from zigma_pl.data.sharded_samples import ShardedSamples, ShardReader
from zigma_pl.data.tar_shards import TarShard
from zigma_pl.encoders.autoencoder import Autoencoder, KLAutoencoder
from zigma_pl.errors import UserError


class StoredSamples(ShardedSamples):
    """A split of stored latents as the loader reads it, a whole batch at a time. The latents travel as `moments`.

    Which caption, and where a clip starts in a longer one, is drawn by (seed, sample id).

    Args:
        reader: of the shards.
        latents: field of the latents.
        shape: what a sample's latents have to be, ([F,] C, H, W).
        class_ids: field of the class, or None.
        num_classes: classes have to be below it.
        caption_features: field of the caption features, (num captions, T, d) or for a single caption (T, d), or None.
        captions: JSON field of the captions' texts, or None.
        seed: of the draws.
        random_start: whether clips start anywhere, or at the first frame.
    """

    def __init__(
        self,
        reader: ShardReader,
        latents: str,
        shape: tuple[int, ...],
        *,
        class_ids: str | None = None,
        num_classes: int | None = None,
        caption_features: str | None = None,
        captions: str | None = None,
        seed: int,
        random_start: bool = False,
    ) -> None:
        super().__init__(reader)
        self.latents = latents
        self.shape = shape
        self.class_ids = class_ids
        self.num_classes = num_classes
        self.caption_features = caption_features
        self.captions = captions
        self.seed = seed
        self.random_start = random_start

    def __getitem__(self, key: SampleKey) -> Sample:
        raise TypeError("stored samples come in batches: ask for __getitems__([key, ...])")

    def __getitems__(self, keys: Sequence[SampleKey]) -> RawBatch:
        """Return the batch of these (sample id, index) pairs."""
        places = [(sample_id, *self.reader.locate(index)) for sample_id, index in keys]
        return RawBatch(
            sample_ids=torch.tensor([sample_id for sample_id, _ in keys]),
            moments=_stack([self._latents(*place) for place in places]),
            class_ids=None if self.class_ids is None else torch.tensor([self._class(*place[1:]) for place in places]),
            **self._captions(places),
        )

    def _latents(self, sample_id: int, shard: TarShard, place: int) -> np.ndarray:
        array = shard.array(place, self.latents)
        if array.ndim == 4 and len(self.shape) == 4 and len(array) >= self.shape[0]:
            num_starts = len(array) - self.shape[0] + 1
            start = draw(self.seed, "clip", sample_id, num_starts) if self.random_start and num_starts > 1 else 0
            array = array[start : start + self.shape[0]]
        if array.shape != self.shape:
            raise UserError(
                f"shard {shard.name}: '{shard.index.keys[place]}.{self.latents}' has shape {array.shape}, but the "
                f"options ask for {self.shape}: choose data.latents, data.image_size_px (8 a latent) and, of videos, "
                "data.num_frames that fit"
            )
        return array

    def _class(self, shard: TarShard, place: int) -> int:
        assert self.class_ids is not None
        assert self.num_classes is not None
        class_id = shard.integer(place, self.class_ids)
        if not 0 <= class_id < self.num_classes:
            raise UserError(
                f"shard {shard.name}: '{shard.index.keys[place]}.{self.class_ids}' is class {class_id}, but classes "
                f"are 0 to {self.num_classes - 1}: set data.num_classes"
            )
        return class_id

    def _captions(self, places: Sequence[tuple[int, TarShard, int]]) -> dict[str, Any]:
        if self.caption_features is None:
            return {}
        features, texts = [], []
        for sample_id, shard, place in places:
            array = shard.array(place, self.caption_features)
            array = array[None] if array.ndim == 2 else array
            chosen = draw(self.seed, "caption", sample_id, len(array))
            features.append(array[chosen])
            if self.captions is not None:
                texts.append(_text(shard, place, self.captions, chosen, len(array)))
        return {"caption_features": _stack(features), "captions": texts or None}


def _text(shard: TarShard, place: int, field: str, chosen: int, number: int) -> str:
    texts = shard.json(place, field)
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or len(texts) != number:
        raise UserError(
            f"shard {shard.name}: '{shard.index.keys[place]}.{field}' should be a list of {number} captions, one for "
            "each of the caption features; fetch or write the shard again"
        )
    return str(texts[chosen])


def _stack(rows: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(rows).astype(np.float32, copy=False))


class StoredConditions(ConditionSamples):
    """Conditions of a split's samples, in turn, for drawing under captions whose features are stored."""

    def __init__(self, samples: StoredSamples) -> None:
        super().__init__(None, None)
        self.samples = samples

    def __getitem__(self, key: SampleKey) -> Sample:
        raw = self.__getitems__([key])
        return Sample(int(raw.sample_ids), caption=raw.captions[0] if raw.captions else None)

    def __getitems__(self, keys: Sequence[SampleKey]) -> RawBatch:
        """Return the batch, without latents, of these pairs."""
        in_turn = [(sample_id, sample_id % len(self.samples)) for sample_id, _ in keys]
        return self.samples.__getitems__(in_turn)._replace(moments=None)


def decoder_scale(decoder: Autoencoder) -> float:
    """Return what an autoencoder multiplies its latents by."""
    return float(decoder.config["scaling_factor"]) if isinstance(decoder, KLAutoencoder) else 1.0


class StoredLatentSpace(Autoencoder):
    """Latents that are drawn already, but not scaled. Pixels cannot be encoded; decoding needs the autoencoder itself.

    Args:
        scale: what stored latents are multiplied by.
        decoder: the autoencoder that made them, or None.

    Raises:
        UserError: the decoder is of another latent space.
    """

    image_channels = 3
    channels = moment_channels = 4
    downsampling = 8

    def __init__(self, scale: float, decoder: Autoencoder | None) -> None:
        self.scale = scale
        self.decoder = decoder
        if decoder is None:
            return
        own = {"channels": self.channels, "pixels a latent": self.downsampling, "scale": scale}
        others = {
            "channels": decoder.channels,
            "pixels a latent": decoder.downsampling,
            "scale": decoder_scale(decoder),
        }
        if own != others:
            raise UserError(
                f"data.autoencoder: it has {others}, the stored latents {own}; give the one that they were made with"
            )

    def moments(self, pixels: Tensor) -> Tensor:
        """Refuse: what is stored is encoded already."""
        raise UserError("data.latents: stored latents are not encoded again; set it to 'image' to encode the pictures")

    def sample(self, moments: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Return the stored latents, scaled; nothing is drawn."""
        return moments * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Decode by the autoencoder, with its own scale."""
        if self.decoder is None:
            raise UserError(
                "data.autoencoder: stored latents need none for training, but for pictures they do: give the folder of "
                "the AutoencoderKL that they were made with, or turn previews off with --preview.num_samples 0"
            )
        return self.decoder.decode(latents)

    def fingerprint(self) -> dict[str, Any]:
        """Return name and scale."""
        return {"name": "stored latents", "scale": self.scale}
