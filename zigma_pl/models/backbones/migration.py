"""Conversion of stored options and weights from before mixers and conditioners were separate options."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zigma_pl.core.class_paths import described
from zigma_pl.models.mixers import Mamba, MixerOptions, ParallelDirections, SelfAttention

_OF_MAMBA = ("state_size", "expand", "conv_kernel", "scan_backend", "activation_memory")
_RENAMED = (
    (re.compile(r"^blocks\.(\d+)\.attention(_norm)?\."), r"blocks.\1.mixer\2."),  # of DiT and U-ViT
    (re.compile(r"^(class|caption)_embedding\."), r"conditioners.\1."),
)


def migrated_options(backbone: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a backbone, given the name of its class, with its mixer's options moved to `mixers`."""
    kept = dict(options)
    of_mamba = {name: kept.pop(name) for name in _OF_MAMBA if name in kept}
    mixers: MixerOptions | None = None
    if of_mamba and backbone == "ZigMa":
        mixers = Mamba(**of_mamba)
    elif of_mamba:
        num_directions = kept["scan"]["num_orders"] if "scan" in kept else 2
        mixers = ParallelDirections(num_directions, **of_mamba)
    elif "num_heads" in kept:
        mixers = SelfAttention(kept.pop("num_heads"), bias=backbone == "DiT", qk_norm=False)
    return kept if mixers is None else {**kept, "mixers": described(mixers)}


def migrated_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a backbone under the current names of its parameters."""
    return {_renamed(name): value for name, value in weights.items()}


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name
