"""Sampling requests (prompts or classes) in the form of a data module."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch
from PIL import Image, ImageOps

from zigma_pl.core.batch import Condition, Conditions, RawBatch
from zigma_pl.core.errors import UserError
from zigma_pl.data.base import ImageDataModule, Split
from zigma_pl.data.conditions import ConditionSamples
from zigma_pl.data.images import decode_image, resize_and_crop, to_rgb, to_uint8_tensor
from zigma_pl.data.samples import Sample
from zigma_pl.encoders.autoencoder import Autoencoder, IdentityAutoencoder, KLAutoencoder
from zigma_pl.models.backbones.base import Backbone


class RequestedSamples(ConditionSamples):
    """Sample i has the class or caption of `requests[i]`; all have the same image, if there is one."""

    def __init__(self, requests: Sequence[Sample], image: torch.Tensor | None = None) -> None:
        self.requests = requests
        self.image = image

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        sample_id, _ = key
        return self.requests[sample_id]._replace(image=self.image)


class RequestedData(ImageDataModule):
    """Requests for samples, and the frozen encoders that the model was trained with; it has no splits.

    Args:
        backbone: the model's backbone, which gives its conditions and the shape of its latents.
        requests: conditions of the samples; `sample_id` counts from 0 and determines the noise.
        batch_size: samples per batch.
        conditions: further conditions by name, each of one sample, (1, ...), and used for all samples. Conditions that
            are not given are null.
        image: image, or its file, that all samples start from: resized and cropped to their size, and encoded.
        encoders: options of the autoencoder and the text encoder; see `ImageDataModule`.

    Raises:
        UserError: the text encoder cannot be loaded, or does not match the model's `caption_dim`; the backbone does not
            have a condition, or cannot embed it; the image cannot be read, or the model generates videos. In `setup`:
            the autoencoder cannot be loaded, or its latents do not match the model's.
    """

    def __init__(
        self,
        backbone: Backbone,
        requests: Sequence[Sample],
        batch_size: int,
        conditions: Conditions | None = None,
        image: Image.Image | str | Path | None = None,
        **encoders: Any,
    ) -> None:
        self.has_captions = backbone.caption_dim is not None
        if isinstance(encoders.get("text_encoder"), str):
            encoders.setdefault("caption_dim", backbone.caption_dim)
        super().__init__(batch_size=batch_size, num_predict_samples=len(requests), **encoders)
        self.num_classes = backbone.num_classes
        self.num_frames = backbone.latent_shape[0] if len(backbone.latent_shape) == 4 else None
        self._latent_shape = backbone.latent_shape
        self._requests = requests
        self._further = dict(conditions or {})
        _check_further(self._further, backbone)
        if image is not None and self.num_frames is not None:
            raise UserError("image: the model generates videos, which cannot start from an image: omit the option")
        if isinstance(image, (str, Path)) and not Path(image).is_file():
            raise UserError(f"image: file '{image}' does not exist: correct the path")
        self._image = decode_image(Path(image), upright=True) if isinstance(image, (str, Path)) else image

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the model's latents, which need not be square."""
        assert self._encoder  # raises before sampling if the autoencoder does not fit
        return self._latent_shape

    def load_split(self, split: Split) -> NoReturn:
        """Raise an AssertionError, as requests have no splits."""
        raise AssertionError("requests have no splits")

    def encode_conditions(self, raw: RawBatch, device: torch.device | str) -> dict[str, Condition]:
        """Return class and caption of each sample, and the further conditions."""
        further = {name: _repeated(condition, len(raw.sample_ids), device) for name, condition in self._further.items()}
        return {**super().encode_conditions(raw, device), **further}

    def _conditions(self) -> RequestedSamples:
        return RequestedSamples(self._requests, None if self._image is None else self._fitted(self._image))

    def _fitted(self, image: Image.Image) -> torch.Tensor:
        """Return (C, height, width) uint8: the centre of the image in the size of the samples."""
        height, width = (side * self._encoder.downsampling for side in self._latent_shape[-2:])
        in_mode = image.convert("L") if self._encoder.image_channels == 1 else to_rgb(image)
        if height == width:
            return to_uint8_tensor(resize_and_crop(in_mode, width))  # as in training
        return to_uint8_tensor(ImageOps.fit(in_mode, (width, height), Image.Resampling.BICUBIC))

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


def _check_further(conditions: Conditions, backbone: Backbone) -> None:
    for name, condition in conditions.items():
        if name not in backbone.conditioners:
            raise UserError(f"conditions: the model has no {name!r}, only {', '.join(backbone.conditioners) or 'none'}")
        if condition.values.ndim == 0 or len(condition.values) != 1:
            raise UserError(
                f"conditions: {name!r} must be of one sample, (1, ...), not {tuple(condition.values.shape)}"
            )
        conditioner: Any = backbone.conditioners[name]
        conditioner.check(name, condition, 1)


def _repeated(condition: Condition, batch_size: int, device: torch.device | str) -> Condition:
    def of_batch(values: torch.Tensor) -> torch.Tensor:
        return values.to(device).repeat_interleave(batch_size, dim=0)

    return Condition(of_batch(condition.values), None if condition.mask is None else of_batch(condition.mask))
