"""Options that a backbone takes from the data module unless they are given: latent shape, classes, caption width."""

from collections.abc import Container, Iterable, Mapping, MutableMapping
from typing import Any, NamedTuple, Protocol, Self

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from zigma_pl.core.errors import UserError

_CONDITIONS = ("num_classes", "caption_dim")


class Described(Protocol):
    """A data module or a backbone: their common description of latents and conditions."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, H, W), for clips (F, C, H, W)."""

    @property
    def num_classes(self) -> int | None:
        """Number of classes, None without classes."""

    @property
    def caption_dim(self) -> int | None:
        """Width of a caption token's features, None without captions."""


class Specification(NamedTuple):
    """Shape of latents and conditions, named like a backbone's options; None for what the data do not have."""

    in_channels: int
    latent_height: int
    latent_width: int
    latent_frames: int | None
    num_classes: int | None
    caption_dim: int | None

    @classmethod
    def of(cls, described: Described) -> Self:
        """Return the specification of a data module or a backbone; no data and no weights are loaded."""
        *frames, channels, height, width = described.latent_shape
        num_frames = frames[0] if frames else None
        return cls(channels, height, width, num_frames, described.num_classes, described.caption_dim)


def fill_from(source: Mapping[str, Any], options: MutableMapping[str, Any]) -> None:
    """Set those options of a backbone that are None from `source`, whose keys are the fields of `Specification`."""
    for name in Specification._fields:
        if name in options and options[name] is None:
            options[name] = source.get(name)


def check_data_fit_backbone(data: Described, backbone: Described) -> None:
    """Check that a backbone fits the data; it may ignore their conditions.

    Raises:
        UserError: they differ; the message gives the options and both values.
    """
    wanted, given = Specification.of(backbone)._asdict(), Specification.of(data)._asdict()
    may_differ = {name for name in _CONDITIONS if wanted[name] is None}
    differing = [name for name in wanted if wanted[name] != given[name] and name not in may_differ]
    if differing:
        has, takes = (", ".join(f"{name}={values[name]}" for name in differing) for values in (given, wanted))
        raise UserError(
            f"the data module {type(data).__name__} has {has}, but the backbone has {takes}: remove these options of "
            "model.backbone.init_args to take them from the data (or the checkpoint), or change the data"
        )


def warn_of_ignored_conditions(given: Iterable[str], taken: Container[str]) -> None:
    """Warn if the data have conditions that the backbone ignores.

    Args:
        given: names of the conditions in a batch.
        taken: names of the backbone's conditioners.
    """
    ignored = [name for name in given if name not in taken]
    if ignored:
        names = ", ".join(map(repr, ignored))
        rank_zero_warn(
            f"the backbone ignores {names}, which the data provide: to train on all conditions of the data, add "
            "conditioners of these names to model.backbone"
        )
