"""Batches and conditions: the tuples that data modules pass to models, and the shapes of their tensors.

Axes: B batch, F frames (videos only), C channels, H W latent grid, T caption tokens.
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

FILLER_ID = -1  # sample id of a batch that only keeps a process in step with the others; see `Batch.is_filler`

# Names of the conditions that the data modules of this package provide.
CLASS = "class"
CAPTION = "caption"


class Condition(NamedTuple):
    """One condition of a batch, such as its class ids or its caption features.

    values: class ids (B,) int64, token features (B, T, d) float32, or maps (B, C, H, W) float32 with the latents'
        height and width, (B, F, C, H, W) for videos.
    mask: (B, T) bool, True on real tokens; None if all tokens are real or if the condition has no tokens.
    """

    values: Tensor
    mask: Tensor | None = None


Conditions = Mapping[str, Condition]
"""The conditions of a batch by name."""


class RawBatch(NamedTuple):
    """A batch as the data loader yields it, before the frozen encoders run.

    A prepared data set yields the stored outputs of the encoders (`moments`, `caption_features`) instead of images and
    captions.

    sample_ids: (B,) int64, on the CPU; the position in the endless stream of training samples, otherwise the index in
        the data set; FILLER_ID in a filler batch (`Batch.is_filler`).
    images: (B, 3 or 1, height, width) uint8, (B, F, 3, height, width) for videos; None when sampling or if `moments`
        is given.
    class_ids: (B,) int64 in [0, num_classes), or None.
    captions: B strings, or None.
    moments: (B, 2 C, H, W), (B, F, 2 C, H, W) for videos: mean and standard deviation of the latents' posterior from a
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
    """A batch as the model receives it.

    latents: (B, C, H, W) float32, (B, F, C, H, W) for videos: x_data of the interpolant; None when sampling.
    sample_ids: (B,) int64. They stay on the CPU, where the per-sample generators are seeded with them: reading them
        back from a GPU would synchronise with it. All noise of a sample is a function of (seed, sample id).
    conditions: by name, such as "class" or "caption"; empty for an unconditional model.
    images: (B, 3 or 1, height, width) uint8, (B, F, 3, height, width) for videos: the pixels that were encoded to the
        latents, for loss terms that read them; None when sampling and with a prepared data set that stores latents.
    """

    latents: Tensor | None
    sample_ids: Tensor
    conditions: Conditions = {}  # noqa: RUF012  never modified
    images: Tensor | None = None

    @property
    def is_filler(self) -> bool:
        """Whether the batch is padding, not data: evaluation must leave it out of every result.

        In evaluation all processes run the same number of batches, so that each takes part in every collective call. A
        process with no samples left receives a copy of its first sample with the id FILLER_ID.
        """
        return bool((self.sample_ids == FILLER_ID).any())
