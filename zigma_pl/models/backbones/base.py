"""Base class of backbones.

Axes: B batch, F frames (videos only), C channels, H W latent grid, T caption tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from zigma_pl.core.batch import CAPTION, CLASS, Condition, Conditions
from zigma_pl.core.class_paths import Configurable, options_of, parsed_options, plain
from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_numbers, check_whole_numbers
from zigma_pl.models.conditioners import CaptionConditioner, ClassConditioner, Conditioner, Entry
from zigma_pl.models.layers.shapes import check_shape

# Maximum values of options that determine memory use, far above those of any trained network.
LARGEST = {
    "in_channels": 4096,
    "latent_height": 16_384,
    "latent_width": 16_384,
    "latent_frames": 16_384,
    "patch_size": 1024,
    "width": 65_536,
    "depth": 4096,
    "num_classes": 10_000_000,
    "caption_dim": 65_536,
    "attention_heads": 4096,
    "attention_head_dim": 4096,
}


class Backbone(Configurable, nn.Module, ABC):
    """A network (x_t, t, conditions) -> prediction; t = 0 is data, t = 1 is noise.

    Subclasses set `conditioners`, an nn.ModuleDict with a conditioner for each condition, by name.

    Args:
        latent_shape: (C, H, W) of x_t, (F, C, H, W) for videos.
    """

    conditioners: nn.ModuleDict

    def __init__(self, latent_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.latent_shape = latent_shape

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's options as plain values, from which `from_config` builds the same network."""
        options: dict[str, Any] = plain(options_of(self))
        return options

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the class condition, None without one."""
        conditioner = self._conditioners().get(CLASS)
        return conditioner.num_classes if isinstance(conditioner, ClassConditioner) else None

    @property
    def caption_dim(self) -> int | None:
        """Feature width of the caption condition, None without one."""
        conditioner = self._conditioners().get(CAPTION)
        return conditioner.caption_dim if isinstance(conditioner, CaptionConditioner) else None

    @property
    def droppable_conditions(self) -> tuple[str, ...]:
        """Names of the conditions that have a null entry, which guidance and dropout need."""
        return tuple(self.dropout_rates)

    @property
    def dropout_rates(self) -> dict[str, float]:
        """For each droppable condition, the fraction of training samples in which it is dropped on its own."""
        conditioners = self._conditioners().items()
        return {name: conditioner.dropout for name, conditioner in conditioners if conditioner.has_null}

    def _conditioners(self) -> dict[str, Conditioner]:
        return dict(self.conditioners.items())  # type: ignore[arg-type]

    @classmethod
    def from_config(cls, config: Mapping[str, Any], allow_imports: Sequence[str] = ()) -> Self:
        """Build a backbone from its `Backbone.config`.

        Args:
            config: the constructor's options as plain values.
            allow_imports: packages, other than this one, whose classes may be used.

        Raises: UserError, see `zigma_pl.core.class_paths.parsed_options`.
        """
        return cls(**parsed_options(cls, config, allow_imports))

    @abstractmethod
    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        conditions: Conditions | None = None,
        dropped: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Predict (B, C, H, W) from x_t (B, C, H, W); both are (B, F, C, H, W) for videos.

        Args:
            x_t: noisy latents.
            t: (B,) in [0, 1].
            conditions: by name; missing conditions are replaced by their null entries.
            dropped: by name, (B,) bool, True for samples whose condition is replaced by its null entry.
        """

    def check_inputs(self, x_t: Tensor) -> None:
        """Raise UserError if x_t does not have the shape that this backbone was built for."""
        if tuple(x_t.shape[1:]) != self.latent_shape:
            axes = ("B", "F", "C", "H", "W") if len(self.latent_shape) == 4 else ("B", "C", "H", "W")
            raise UserError(
                f"x_t has shape {tuple(x_t.shape)}, but this backbone was built for ({', '.join(axes)}) = "
                f"(B, {', '.join(map(str, self.latent_shape))}): set in_channels, latent_height and latent_width, "
                "and for videos latent_frames"
            )

    def embed_conditions(
        self, conditions: Conditions | None, dropped: Mapping[str, Tensor] | None, x_t: Tensor
    ) -> list[Entry]:
        """Embed every condition, with the null entry for missing conditions.

        Raises: UserError for an unknown condition, a condition of the wrong shape, or a missing condition that has no
            null entry.
        """
        conditions, dropped = {} if conditions is None else conditions, dropped or {}
        if isinstance(conditions, Tensor) or not all(isinstance(value, Condition) for value in conditions.values()):
            raise UserError("conditions: expected a dict of Condition by name, such as {'class': Condition(class_ids)}")
        for name in (*conditions, *dropped):
            if name not in self.conditioners:
                known = ", ".join(self.conditioners) or "none"
                raise UserError(
                    f"condition {name!r} does not exist in this backbone (conditions: {known}): set num_classes for "
                    "'class', caption_dim for 'caption', conditioners for others"
                )
        entries = []
        for name, conditioner in self._conditioners().items():
            condition, omitted = conditions.get(name), dropped.get(name)
            if condition is None:
                condition, omitted = _dropped_placeholder(name, conditioner, x_t)
            conditioner.check(name, condition, len(x_t))
            if omitted is not None:
                check_shape("dropped", name, omitted, "(B,)", len(x_t))
            entries.append(conditioner(condition, omitted))
        return entries

    def num_parameters(self) -> int:
        """Return the number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())


def _dropped_placeholder(name: str, conditioner: Conditioner, x_t: Tensor) -> tuple[Condition, Tensor]:
    """Return a placeholder for a missing condition, and a `dropped` mask that is True for all samples."""
    if not conditioner.has_null:
        raise UserError(
            f"condition {name!r} is missing, and this backbone has no null entry for it: pass the condition"
        )
    all_samples = torch.ones(len(x_t), dtype=torch.bool, device=x_t.device)
    return conditioner.placeholder(len(x_t), x_t.device), all_samples


def checked_options(constructor_locals: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options in a constructor's `locals()` by name, after checking their ranges.

    Raises: UserError for a number out of range, before any memory is allocated.
    """
    options = {name: value for name, value in constructor_locals.items() if name not in ("self", "__class__")}
    owner = type(constructor_locals["self"]).__name__
    for name in LARGEST.keys() & options.keys():
        check_whole_numbers(owner, most=LARGEST[name], **{name: options[name]})
    check_numbers(owner, above=0, most=64, mlp_ratio=options.get("mlp_ratio"))
    return options


def resolve_size(
    presets: Mapping[str, tuple[int, int]], size: str | None, width: int | None, depth: int | None
) -> tuple[int, int]:
    """Return (width, depth) from a preset, explicit values, or a preset with one of them overridden."""
    preset = presets[size] if size is not None else (None, None)
    width = preset[0] if width is None else width
    depth = preset[1] if depth is None else depth
    if width is None or depth is None:
        raise UserError(f"the size of the backbone is missing: set size ({', '.join(presets)}) or width and depth")
    return width, depth
