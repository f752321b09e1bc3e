"""Base class of frozen text encoders."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zigma_pl.core.class_paths import Configurable


class TextEncoder(Configurable, ABC):
    """A frozen text encoder. Its output always has `max_tokens` tokens, independent of the other captions in the batch.

    Attributes:
        dim: feature width of a token.
        max_tokens: tokens in the output; longer captions are truncated.
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
        """Return plain values that identify this encoder: encoders with equal ones give equal features."""
