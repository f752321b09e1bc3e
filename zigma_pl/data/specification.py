"""What a backbone has to know of the data: the options that it takes from the data module unless they are stated."""

from collections.abc import Mapping, MutableMapping
from typing import Any, NamedTuple, Protocol, Self

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from zigma_pl.core.errors import UserError

_CONDITIONS = ("num_classes", "caption_dim")


class Described(Protocol):
    """A data module, or a backbone: what both say of latents and conditions."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, H, W), of clips (F, C, H, W)."""

    @property
    def num_classes(self) -> int | None:
        """Classes, None without."""

    @property
    def caption_dim(self) -> int | None:
        """Width of a caption token's features, None without captions."""


class Specification(NamedTuple):
    """Latents and conditions under the names of a backbone's options; None for what the data do not have."""

    in_channels: int
    latent_height: int
    latent_width: int
    latent_frames: int | None
    num_classes: int | None
    caption_dim: int | None

    @classmethod
    def of(cls, described: Described) -> Self:
        """Return what a data module has, or a backbone is built for; no data and no weights are loaded."""
        *frames, channels, height, width = described.latent_shape
        num_frames = frames[0] if frames else None
        return cls(channels, height, width, num_frames, described.num_classes, described.caption_dim)


def fill_from(source: Mapping[str, Any], options: MutableMapping[str, Any]) -> None:
    """Set the options of a backbone that are None to what `source`, by the names of `Specification`, has for them."""
    for name in Specification._fields:
        if name in options and options[name] is None:
            options[name] = source.get(name)


def check_data_fit_backbone(data: Described, backbone: Described) -> None:
    """Compare what the data have with what a backbone is built for; a condition that it ignores is warned of.

    Raises:
        UserError: they differ; the options and both values are named.
    """
    wanted, given = Specification.of(backbone)._asdict(), Specification.of(data)._asdict()
    may_differ = {name for name in _CONDITIONS if wanted[name] is None}
    differing = [name for name in wanted if wanted[name] != given[name] and name not in may_differ]
    if differing:
        has, takes = (", ".join(f"{name}={values[name]}" for name in differing) for values in (given, wanted))
        raise UserError(
            f"the data module {type(data).__name__} gives {has}, but the backbone is built for {takes}: leave these "
            "options of model.backbone.init_args out, so that they are those of the data (or of the checkpoint), or "
            "change the data"
        )
    if may_differ == set(_CONDITIONS) and any(given[name] for name in _CONDITIONS):
        what = "classes" if given["num_classes"] else "captions"
        rank_zero_warn(
            f"the data module {type(data).__name__} gives {what}, but the backbone takes none: the model is "
            f"unconditional. To have them as condition, set num_classes or caption_dim of the backbone"
        )
