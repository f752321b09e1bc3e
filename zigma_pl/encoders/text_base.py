"""What all frozen text encoders have in common."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zigma_pl.core.class_paths import Configurable


class TextEncoder(Configurable, ABC):
    """A frozen encoder. Its output has always `max_tokens` tokens, so it does not depend on the rest of the batch.

    Attributes:
        dim: width of a token's features.
        max_tokens: tokens in the output; longer captions are cut off.
    """

    dim: int
    max_tokens: int

    @abstractmethod
    def __call__(self, captions: Sequence[str], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Encode B captions.

        Returns:
            features (B, max_tokens, dim) float32, zero on padding; mask (B, max_tokens) bool, True on real tokens, at
            least one in every row.
        """

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Return plain values that tell this encoder from others; equal ones give equal features."""
