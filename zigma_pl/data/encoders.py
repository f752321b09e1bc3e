"""The frozen encoders of a data module: from the loader's batches to the model's input, and from latents to images."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from zigma_pl.core.batch import CAPTION, CLASS, Condition, RawBatch
from zigma_pl.core.randomness import sample_generators
from zigma_pl.core.transfer import to_device
from zigma_pl.encoders.autoencoder import Autoencoder
from zigma_pl.encoders.text_base import TextEncoder


class Encoders(NamedTuple):
    """The frozen encoders of a data set.

    autoencoder: encoder of images, or of the frames of clips.
    text: encoder of captions; None without captions.
    seed: posterior samples are a function of this seed and the sample id.
    """

    autoencoder: Autoencoder
    text: TextEncoder | None
    seed: int

    @torch.no_grad()
    def latents(self, raw: RawBatch) -> Tensor | None:
        """Return the latents of a raw batch; None if it has neither images nor moments."""
        generators = sample_generators(self.seed, "posterior", raw.sample_ids)
        if raw.moments is not None:
            return self.autoencoder.sample(raw.moments.float(), generators)
        return None if raw.images is None else self.autoencoder.encode(raw.images.float() / 127.5 - 1, generators)

    @torch.no_grad()
    def conditions(self, raw: RawBatch, device: torch.device | str) -> dict[str, Condition]:
        """Return class and caption of a raw batch, already on `device`, if present."""
        conditions = {}
        if raw.class_ids is not None:
            conditions[CLASS] = Condition(raw.class_ids)
        if raw.caption_features is not None:
            conditions[CAPTION] = Condition(raw.caption_features.float(), raw.caption_mask)
        elif raw.captions is not None and self.text is not None:
            conditions[CAPTION] = Condition(*self.text(raw.captions, device))
        return conditions

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to images (B, 3 or 1, height, width), or clips (B, F, 3, height, width), in [0, 1]."""
        decoded = self.autoencoder.decode(latents.float().flatten(0, -4))
        return (decoded / 2 + 0.5).clamp(0, 1).unflatten(0, latents.shape[:-3])


def move(raw: RawBatch, device: torch.device) -> RawBatch:
    """Move a raw batch to a device; the sample ids stay on the CPU, where the per-sample generators are."""
    moved: dict[str, Any] = {
        name: to_device(value, device)
        for name, value in raw._asdict().items()
        if isinstance(value, Tensor) and name != "sample_ids"
    }
    return raw._replace(**moved)
