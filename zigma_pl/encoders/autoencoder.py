"""Frozen autoencoders between pixels in [-1, 1] and latents.

They belong to the data module, never to a module that is trained, averaged or saved.
"""

import inspect
import re
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from zigma_pl.core.class_paths import Configurable
from zigma_pl.core.errors import UserError
from zigma_pl.core.randomness import randn_per_sample
from zigma_pl.core.records import problems
from zigma_pl.core.transfer import to_device
from zigma_pl.encoders.kl_config import KLConfig
from zigma_pl.encoders.weights import check_complete, check_size, hash_of_weights, loading

_PIXELS_PER_CALL = 32 * 256 * 256  # limits the memory of one call: 32 images at 256 px, 2 at 1024 px


class Autoencoder(Configurable, ABC):
    """A frozen encoder and decoder.

    Encoding has two steps, so that the result of the expensive one can be computed once and stored on disk: `moments`
    runs the network, `sample` draws latents from its output.

    Attributes:
        image_channels: channels of the pixels.
        channels: channels of the latents, C.
        moment_channels: channels of the moments.
        downsampling: pixels per latent along each side.
    """

    image_channels: int
    channels: int
    moment_channels: int
    downsampling: int

    @abstractmethod
    def moments(self, pixels: Tensor) -> Tensor:
        """Encode pixels (B, image_channels, height, width) in [-1, 1] to (B, moment_channels, H, W) float32."""

    @abstractmethod
    def sample(self, moments: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Draw latents from moments.

        Args:
            moments: (B, moment_channels, H, W), (B, F, moment_channels, H, W) for videos.
            generators: one CPU generator per sample.

        Returns: latents (B, C, H, W), (B, F, C, H, W) for videos, float32 on the moments' device.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (B, channels, H, W) to pixels (B, image_channels, height, width), nominally in [-1, 1]."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Return plain values that identify this encoder: encoders with equal ones give equal moments and latents."""

    def encode(self, pixels: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Encode pixels to latents, with the shapes of `moments` and `sample`; videos are (B, F, ...)."""
        flat = self.moments(pixels.flatten(0, -4))
        return self.sample(flat.unflatten(0, pixels.shape[:-3]), generators)


class IdentityAutoencoder(Autoencoder):
    """Pixel space: the latents are the pixels."""

    downsampling = 1

    def __init__(self, channels: int) -> None:
        self.image_channels = self.channels = self.moment_channels = channels

    def moments(self, pixels: Tensor) -> Tensor:
        """Return the pixels."""
        return pixels

    def sample(self, moments: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Return the pixels."""
        return moments

    def decode(self, latents: Tensor) -> Tensor:
        """Return the latents."""
        return latents

    def fingerprint(self) -> dict[str, Any]:
        """Return the name."""
        return {"name": "identity"}


class KLAutoencoder(Autoencoder):
    """A diffusers `AutoencoderKL`, whose posterior is sampled: latents = scale * (mean + std * noise - shift).

    Scale and shift come from its configuration (`scaling_factor`, `shift_factor`, or per channel `latents_mean` and
    `latents_std`). The constructor reads only the configuration; the weights are loaded at the first call and moved to
    the device of its input.

    Args:
        path: local folder with `config.json` and weights, or the name of a Hugging Face Hub repository.
        subfolder: folder of the autoencoder within `path`, such as "vae".

    Raises:
        UserError: it cannot be loaded, or is not an AutoencoderKL.
    """

    def __init__(self, path: str, subfolder: str | None = None) -> None:
        self.path = path
        self.subfolder = subfolder
        self.config = self._load_config()
        self.image_channels = int(self.config["in_channels"])
        self.channels = int(self.config["latent_channels"])
        self.moment_channels = 2 * self.channels
        self.downsampling = 2 ** (len(self.config["block_out_channels"]) - 1)

    @torch.no_grad()
    def moments(self, pixels: Tensor) -> Tensor:
        """Return mean and standard deviation of the posterior, concatenated along the channels."""
        network = self._network.to(pixels.device)
        posteriors = [network.encode(part).latent_dist for part in pixels.split(_samples_per_call(pixels.shape))]
        return torch.cat([torch.cat([posterior.mean, posterior.std], dim=1) for posterior in posteriors])

    @torch.no_grad()
    def sample(self, moments: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Sample the posterior with each sample's own generator, then shift and scale."""
        mean, std = moments.chunk(2, dim=-3)
        noise = randn_per_sample(generators, tuple(mean.shape[1:]), device=mean.device)
        shift, scale = (to_device(value, mean.device) for value in self._shift_and_scale)
        return (mean + std * noise - shift) * scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Undo scale and shift, then decode."""
        network = self._network.to(latents.device)
        shift, scale = (value.to(latents.device) for value in self._shift_and_scale)
        num_samples = _samples_per_call(latents.shape, self.downsampling)
        parts = (latents.float() / scale + shift).split(num_samples)
        return torch.cat([network.decode(part).sample for part in parts])

    def fingerprint(self) -> dict[str, Any]:
        """Return path, scale, shift and a hash of the weights, which are loaded if necessary."""
        shift, scale = (value.flatten().tolist() for value in self._shift_and_scale)
        where = self.path if self.subfolder is None else f"{self.path}/{self.subfolder}"
        return {"name": where, "weights_sha256": hash_of_weights(self._network), "shift": shift, "scale": scale}

    def _load_config(self) -> dict[str, Any]:
        from diffusers import AutoencoderKL

        if not Path(self.path).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.path):
            raise UserError(
                f"autoencoder: there is no folder '{self.path}': pass the folder of a saved diffusers AutoencoderKL, "
                "a Hub repository owner/name, or 'identity' for pixel space"
            )
        with self._loading():
            config: dict[str, Any] = AutoencoderKL.load_config(self.path, **self._where())
            class_name = config.get("_class_name", "AutoencoderKL")
            config = {**_default_arguments(AutoencoderKL), **config}
        if class_name != "AutoencoderKL":
            raise UserError(
                f"autoencoder: '{self.path}' contains a {class_name!r:.100}: pass the folder of an AutoencoderKL"
            )
        try:
            KLConfig.model_validate({**config, "block_out_channels": list(config["block_out_channels"])})
        except (ValidationError, TypeError) as error:
            problem = problems(error) if isinstance(error, ValidationError) else "block_out_channels: not a list"
            raise UserError(
                f"autoencoder: config.json of '{self.path}' is invalid ({problem}): save the autoencoder again"
            ) from error
        return config

    @cached_property
    def _network(self) -> Any:
        from diffusers import AutoencoderKL

        with self._loading():
            folder = Path(self.path, self.subfolder or "")
            if folder.is_dir():
                check_size(lambda: AutoencoderKL.from_config(self.config), folder)
            network, report = AutoencoderKL.from_pretrained(
                self.path,
                torch_dtype=torch.float32,
                low_cpu_mem_usage=False,
                output_loading_info=True,
                **self._where(),
            )
            check_complete(network, report["missing_keys"])
        return network.eval().requires_grad_(False)

    def _loading(self) -> AbstractContextManager[None]:
        return loading(
            "autoencoder",
            self.path if self.subfolder is None else f"{self.path}/{self.subfolder}",
            "pass the folder of a diffusers AutoencoderKL with config.json and weights, set autoencoder_subfolder if "
            "it is in a subfolder, or use 'identity'",
        )

    def _where(self) -> dict[str, Any]:
        return {} if self.subfolder is None else {"subfolder": self.subfolder}

    @cached_property
    def _shift_and_scale(self) -> tuple[Tensor, Tensor]:
        scaling_factor = float(self.config["scaling_factor"])
        if self.config["latents_mean"] is None:
            return torch.tensor(float(self.config["shift_factor"] or 0.0)), torch.tensor(scaling_factor)
        mean, std = (torch.tensor(self.config[name]).view(1, -1, 1, 1) for name in ("latents_mean", "latents_std"))
        return mean, scaling_factor / std


def _default_arguments(constructor: Any) -> dict[str, Any]:
    parameters = inspect.signature(constructor.__init__).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.name != "self"}


def _samples_per_call(shape: torch.Size, downsampling: int = 1) -> int:
    return max(1, _PIXELS_PER_CALL // (shape[-1] * shape[-2] * downsampling**2))


def build_autoencoder(name: str | Autoencoder, image_channels: int, subfolder: str | None = None) -> Autoencoder:
    """Return an IdentityAutoencoder for "identity", a KLAutoencoder for any other name, or the given object.

    Raises:
        UserError: it cannot be loaded, or its number of image channels differs from the data set's.
    """
    if name == "identity":
        return IdentityAutoencoder(image_channels)
    autoencoder = name if isinstance(name, Autoencoder) else KLAutoencoder(name, subfolder)
    if autoencoder.image_channels != image_channels:
        raise UserError(
            f"autoencoder: '{name}' takes images with {autoencoder.image_channels} channels, but the data set has "
            f"{image_channels}: choose another autoencoder, or 'identity'"
        )
    return autoencoder
