"""Frozen text encoders: captions to token features and a mask."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from zigma_pl.errors import UserError

TextEncoderName = Literal["hashing", "clip", "minilm"]

_EMPTY_CAPTION = "<empty>"  # cannot be a word: the word pattern has no brackets


class TextEncoder(ABC):
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


class HashingTextEncoder(TextEncoder):
    """A bag of hashed words with positions: needs no weights and is the same on every machine.

    Token t is sqrt(dim) times the word's own random unit vector plus the sinusoid of position t, so that a feature is
    of order one. Words are lower-cased runs of letters and digits. It knows no meaning: two words are as different as
    any other two. An empty caption is one token of its own.

    Args:
        dim: width of a token's features, at least 2.
        max_tokens: words kept of a caption, at least 1.
    """

    def __init__(self, dim: int = 256, max_tokens: int = 32) -> None:
        if dim < 2 or max_tokens < 1:
            raise UserError(f"text encoder: dim must be at least 2 and max_tokens at least 1, got {dim}, {max_tokens}")
        self.dim = dim
        self.max_tokens = max_tokens
        self._positions = sinusoidal_positions(max_tokens, dim)

    def __call__(self, captions: Sequence[str], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Encode B captions; see `TextEncoder`."""
        features = torch.zeros(len(captions), self.max_tokens, self.dim)
        mask = torch.zeros(len(captions), self.max_tokens, dtype=torch.bool)
        for row, caption in enumerate(captions):
            words = re.findall(r"\w+", caption.lower())[: self.max_tokens] or [_EMPTY_CAPTION]
            vectors = torch.stack([word_vector(word, self.dim) for word in words])
            features[row, : len(words)] = self.dim**0.5 * vectors + self._positions[: len(words)]
            mask[row, : len(words)] = True
        return features.to(device), mask.to(device)

    def fingerprint(self) -> dict[str, Any]:
        """Return the name and the options."""
        return {"name": "hashing", "dim": self.dim, "max_tokens": self.max_tokens}


@lru_cache(maxsize=65536)
def word_vector(word: str, dim: int) -> Tensor:
    """Return the (dim,) unit vector of a word, drawn from a generator seeded by the word's hash."""
    digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    vector = torch.randn(dim, generator=generator)
    return vector / vector.norm()


def sinusoidal_positions(num_positions: int, dim: int) -> Tensor:
    """Return (num_positions, dim) sines and cosines, wavelengths 2 pi to 20,000 pi (arXiv:1706.03762, section 3.5)."""
    half = (dim + 1) // 2
    frequencies = 10000.0 ** (-torch.arange(half) / half)
    angles = torch.arange(num_positions)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :dim]


def build_text_encoder(
    name: TextEncoderName, path: str | None = None, dim: int | None = None, max_tokens: int | None = None
) -> TextEncoder:
    """Return the named encoder.

    Args:
        name: which encoder.
        path: folder of its weights, for encoders that have any.
        dim: width of a token's features; an encoder of fixed width refuses any other.
        max_tokens: tokens kept of a caption; None for the encoder's own number.

    Raises:
        UserError: the options do not go together, or the weights cannot be read.
    """
    if name == "hashing":
        if path is not None:
            raise UserError(f"text_encoder_path: the hashing encoder has no weights; leave '{path}' out")
        return HashingTextEncoder(dim or 256, max_tokens or 32)
    # Imported here: it builds on this file.
    from zigma_pl.encoders.transformer_text import CLIPTextEncoder, MiniLMTextEncoder

    if name == "minilm":
        return MiniLMTextEncoder(path, dim, max_tokens)
    if name == "clip":
        if path is None:
            raise UserError(
                "text_encoder: 'clip' needs data.text_encoder_path, the folder of its weights and tokenizer"
            )
        return CLIPTextEncoder(path, dim, max_tokens)
    raise UserError(f"text_encoder: unknown '{name}', choose 'hashing', 'clip' or 'minilm'")
