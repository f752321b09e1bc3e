"""What every backbone promises.

Axes: B batch, F frames (videos only), C channels, H W latent grid, T caption tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from zigma_pl.backbones.migration import migrated_options
from zigma_pl.class_paths import build_described, described
from zigma_pl.errors import UserError
from zigma_pl.mixers import MixerOptions
from zigma_pl.ranges import check_numbers, check_whole_numbers
from zigma_pl.scan.schedule import ScanConfig

# Largest values of the options that decide how much is allocated; each is far beyond any network that was trained.
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


class Backbone(nn.Module, ABC):
    """A network (x_t, t, condition) -> prediction, with t = 0 at the data and t = 1 at the noise.

    Args:
        latent_shape: (C, H, W) of x_t, of videos (F, C, H, W).
        num_classes: classes it can be conditioned on, None for none.
        caption_dim: width of the caption features it can be conditioned on, None for none.
        null_condition: whether it has a learned entry for "no condition", which guidance and condition dropout need.
        config: the plain constructor options, enough to build it again.
    """

    def __init__(
        self,
        latent_shape: tuple[int, ...],
        num_classes: int | None,
        caption_dim: int | None,
        null_condition: bool,
        config: dict[str, Any],
    ) -> None:
        super().__init__()
        if num_classes is not None and caption_dim is not None:
            raise UserError("a backbone takes classes or captions: set one of num_classes and caption_dim, not both")
        self.latent_shape = latent_shape
        self.num_classes = num_classes
        self.caption_dim = caption_dim
        self.has_null_condition = null_condition and (num_classes is not None or caption_dim is not None)
        self.config = config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build the backbone that `config`, a `Backbone.config` of plain types, describes."""
        options = migrated_options(cls.__name__, config)
        if options.get("scan") is not None:
            options["scan"] = ScanConfig(**options["scan"])
        if options.get("mixers") is not None:
            given = options["mixers"]
            entries = given if isinstance(given, list) else [given]
            mixers = [build_described(entry, MixerOptions) for entry in entries]  # type: ignore[type-abstract]
            options["mixers"] = mixers if isinstance(given, list) else mixers[0]
        return cls(**options)

    @abstractmethod
    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Tensor | None = None,
        caption_mask: Tensor | None = None,
        condition_dropped: Tensor | None = None,
    ) -> Tensor:
        """Predict (B, C, H, W) from x_t (B, C, H, W); of videos both are (B, F, C, H, W).

        Args:
            x_t: noisy latents.
            t: (B,) in [0, 1].
            condition: class ids (B,) int64, or caption features (B, T, caption_dim); None for no condition.
            caption_mask: (B, T) bool, True on the caption tokens that count.
            condition_dropped: (B,) bool, True where the condition is replaced by the null entry.
        """

    def check_inputs(self, x_t: Tensor, condition: Tensor | None) -> None:
        """Raise UserError when x_t or the condition cannot be what this backbone was built for."""
        if tuple(x_t.shape[1:]) != self.latent_shape:
            axes = ("B", "F", "C", "H", "W") if len(self.latent_shape) == 4 else ("B", "C", "H", "W")
            raise UserError(
                f"x_t has shape {tuple(x_t.shape)}, but this backbone is built for ({', '.join(axes)}) = "
                f"(B, {', '.join(map(str, self.latent_shape))}): set in_channels, latent_height and latent_width, "
                "and for videos latent_frames"
            )
        if condition is None:
            if (self.num_classes or self.caption_dim) and not self.has_null_condition:
                raise UserError("this backbone has no null condition: it needs class ids or caption features")
        elif self.num_classes is not None:
            if condition.ndim != 1 or condition.is_floating_point():
                raise UserError(f"expected class ids of shape (B,), got {condition.dtype} {tuple(condition.shape)}")
        elif self.caption_dim is not None:
            if condition.ndim != 3 or condition.shape[-1] != self.caption_dim:
                raise UserError(
                    f"expected caption features (B, T, {self.caption_dim}), got {tuple(condition.shape)}: "
                    f"set caption_dim to the text encoder's width"
                )
        else:
            raise UserError("this backbone is unconditional: set num_classes or caption_dim to give it a condition")

    def null_condition_for(self, x_t: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return a placeholder condition and a drop mask that is True everywhere, for sampling without a condition."""
        batch_size, device = x_t.shape[0], x_t.device
        dropped = torch.ones(batch_size, dtype=torch.bool, device=device)
        if self.num_classes is not None:
            return torch.zeros(batch_size, dtype=torch.int64, device=device), dropped
        if self.caption_dim is not None:
            return torch.zeros(batch_size, 1, self.caption_dim, device=device), dropped
        return None, None

    def num_parameters(self) -> int:
        """Count the parameters."""
        return sum(parameter.numel() for parameter in self.parameters())


def plain_options(constructor_locals: Mapping[str, Any]) -> dict[str, Any]:
    """Return a constructor's `locals()` as a `Backbone.config`: its options alone, dataclasses as dictionaries.

    Raises: UserError for a number that is out of its range; nothing has been allocated by then.
    """
    options = {name: value for name, value in constructor_locals.items() if name not in ("self", "__class__")}
    owner = type(constructor_locals["self"]).__name__
    for name in LARGEST.keys() & options.keys():
        check_whole_numbers(owner, most=LARGEST[name], **{name: options[name]})
    check_numbers(owner, above=0, most=64, mlp_ratio=options.get("mlp_ratio"))
    return {name: _plain(value) for name, value in options.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, MixerOptions):
        return described(value)
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def resolve_size(
    presets: Mapping[str, tuple[int, int]], size: str | None, width: int | None, depth: int | None
) -> tuple[int, int]:
    """Return (width, depth) from a preset, explicit numbers, or a preset with one of them replaced."""
    preset = presets[size] if size is not None else (None, None)
    width = preset[0] if width is None else width
    depth = preset[1] if depth is None else depth
    if width is None or depth is None:
        raise UserError(f"a backbone needs a size ({', '.join(presets)}) or both width and depth")
    return width, depth
