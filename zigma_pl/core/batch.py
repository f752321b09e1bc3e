"""The records that travel from data to model: the only place that defines their shapes.

Axes: B batch, F frames (videos only), C channels, H W latent grid, T caption tokens.
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

FILLER_ID = -1  # sample id in a batch that only keeps a process in step with the others

# Names of the conditions that data modules give.
CLASS = "class"
CAPTION = "caption"


class Condition(NamedTuple):
    """What samples are conditioned on: one of the conditions of a batch.

    values: class ids (B,) int64, features of tokens (B, T, d) float32, or maps (B, C, H, W) float32 of the latents'
        height and width, of videos (B, F, C, H, W).
    mask: (B, T) bool, True on real tokens; None where all are, or where there are none.
    """

    values: Tensor
    mask: Tensor | None = None


Conditions = Mapping[str, Condition]
"""The conditions of a batch by name."""


class RawBatch(NamedTuple):
    """What a data loader yields, before the frozen encoders have run, or what they gave when the set was prepared.

    sample_ids: (B,) int64, on the CPU; in training the position in the endless stream, else the index in the data set;
        FILLER_ID in a filler batch (`Batch.is_filler`).
    images: (B, 3 or 1, height, width) uint8, of videos (B, F, 3, height, width); None when there is no picture
        (sampling), or when `moments` stands in its place.
    class_ids: (B,) int64 in [0, num_classes), or None.
    captions: B strings, or None.
    moments: (B, 2 C, H, W), of videos (B, F, 2 C, H, W): mean and standard deviation of the latents' posterior from a
        prepared data set, before scale and shift, or None.
    caption_features: (B, T, d) float32 from a prepared data set, or None.
    caption_mask: (B, T) bool, True on real tokens; given with `caption_features`.
    """

    sample_ids: Tensor
    images: Tensor | None = None
    class_ids: Tensor | None = None
    captions: list[str] | None = None
    moments: Tensor | None = None
    caption_features: Tensor | None = None
    caption_mask: Tensor | None = None


class Batch(NamedTuple):
    """What the model sees.

    latents: (B, C, H, W) float32, of videos (B, F, C, H, W), x_data of the interpolant, or None when sampling.
    sample_ids: (B,) int64, on the CPU, where the per-sample generators live: reading them back from a GPU would wait
        for everything queued there. All noise of a sample is a function of (seed, sample id).
    conditions: by name, such as "class" or "caption"; empty for none.
    pictures: (B, 3 or 1, height, width) uint8, of videos (B, F, 3, height, width), that the latents were made of, for
        loss terms that read them; None when sampling and from a prepared data set, which holds none.
    """

    latents: Tensor | None
    sample_ids: Tensor
    conditions: Conditions = {}  # noqa: RUF012  never written to
    pictures: Tensor | None = None

    @property
    def is_filler(self) -> bool:
        """Whether this is not part of the data: evaluation must leave it out of every result.

        In evaluation all processes run the same number of batches, so that each reaches every collective call. A
        process that runs out of samples gets a copy of the first one under FILLER_ID.
        """
        return bool((self.sample_ids == FILLER_ID).any())
