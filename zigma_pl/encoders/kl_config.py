"""Types and ranges of what is read from the config.json of a diffusers `AutoencoderKL`."""

from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from zigma_pl.core.records import Part

Channels = Annotated[int, Field(ge=1, le=65_536)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class KLConfig(Part):
    """The options of the network that determine its size and how latents are normalised; others are not checked."""

    model_config = ConfigDict(extra="ignore")

    in_channels: Channels
    latent_channels: Channels
    block_out_channels: Annotated[list[Channels], Field(min_length=1, max_length=16)]
    layers_per_block: Annotated[int, Field(ge=1, le=64)]
    norm_num_groups: Channels
    scaling_factor: Positive
    shift_factor: Finite | None
    latents_mean: list[Finite] | None
    latents_std: list[Positive] | None

    @model_validator(mode="after")
    def _one_per_channel(self) -> Self:
        """Reject a mean without its deviation, with which latents would not be normalised as intended."""
        if self.latents_mean is None and self.latents_std is None:
            return self
        for name in ("latents_mean", "latents_std"):
            if len(getattr(self, name) or ()) != self.latent_channels:
                raise ValueError(
                    f"latents_mean and latents_std are needed together: set {name} to a list of "
                    f"{self.latent_channels} numbers"
                )
        return self
