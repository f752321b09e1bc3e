"""Sampling requests (prompts or classes) in the form of a data module."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NoReturn

from zigma_pl.core.errors import UserError
from zigma_pl.data.base import ImageDataModule, Split
from zigma_pl.data.conditions import ConditionSamples
from zigma_pl.data.samples import Sample
from zigma_pl.encoders.autoencoder import Autoencoder, IdentityAutoencoder, KLAutoencoder
from zigma_pl.models.backbones.base import Backbone


class RequestedSamples(ConditionSamples):
    """Sample i has the class or caption of `requests[i]`."""

    def __init__(self, requests: Sequence[Sample]) -> None:
        self.requests = requests

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        sample_id, _ = key
        return self.requests[sample_id]


class RequestedData(ImageDataModule):
    """Requests for samples, and the frozen encoders that the model was trained with; it has no splits.

    Args:
        backbone: the model's backbone, which gives its conditions and the shape of its latents.
        requests: conditions of the samples; `sample_id` counts from 0 and determines the noise.
        batch_size: samples per batch.
        encoders: options of the autoencoder and the text encoder; see `ImageDataModule`.

    Raises:
        UserError: the text encoder cannot be loaded, or does not match the model's `caption_dim`; in `setup`, the
            autoencoder cannot be loaded, or its latents do not match the model's.
    """

    def __init__(self, backbone: Backbone, requests: Sequence[Sample], batch_size: int, **encoders: Any) -> None:
        self.has_captions = backbone.caption_dim is not None
        if isinstance(encoders.get("text_encoder"), str):
            encoders.setdefault("caption_dim", backbone.caption_dim)
        super().__init__(batch_size=batch_size, num_predict_samples=len(requests), **encoders)
        self.num_classes = backbone.num_classes
        self.num_frames = backbone.latent_shape[0] if len(backbone.latent_shape) == 4 else None
        self._latent_shape = backbone.latent_shape
        self._requests = requests

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the model's latents, which need not be square."""
        assert self._encoder  # raises before sampling if the autoencoder does not fit
        return self._latent_shape

    def load_split(self, split: Split) -> NoReturn:
        """Raise an AssertionError, as requests have no splits."""
        raise AssertionError("requests have no splits")

    def _conditions(self) -> RequestedSamples:
        return RequestedSamples(self._requests)

    @cached_property
    def _encoder(self) -> Autoencoder:
        channels = self._latent_shape[-3]
        if self.autoencoder == "identity":
            if channels not in (1, 3):
                raise UserError(
                    f"autoencoder: the model generates latents of {channels} channels, which must be decoded: give the "
                    "folder of the AutoencoderKL that it was trained with"
                )
            return IdentityAutoencoder(channels)
        given = self.autoencoder
        autoencoder = given if isinstance(given, Autoencoder) else KLAutoencoder(given, self.autoencoder_subfolder)
        if autoencoder.channels != channels:
            raise UserError(
                f"autoencoder: '{given}' has {autoencoder.channels} latent channels, but the model has {channels}: "
                "give the one that it was trained with"
            )
        return autoencoder
