"""Frozen text encoders, from captions to token features and a mask."""

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.core.transfer import to_device
from zigma_pl.encoders.text_base import TextEncoder
from zigma_pl.encoders.transformer_text import CLIPTextEncoder, MiniLMTextEncoder

TextEncoderName = Literal["hashing", "clip", "minilm"]

_EMPTY_CAPTION = "<empty>"  # cannot be a word: the word pattern has no brackets

_WORDS_KEPT = _CAPTIONS_KEPT = 65_536
_MAX_FEATURES = 2**26  # of a caption, far above any use


class HashingTextEncoder(TextEncoder):
    """Hashed words with positions: needs no weights and gives the same features on every machine.

    Token t is sqrt(dim) times the random unit vector of the word plus the sinusoid of position t, so that features are
    of order one. Words are lower-cased runs of letters and digits. The encoder has no notion of meaning: any two words
    are equally different. An empty caption becomes a single token that no word has.

    The host maps words to rows of a table of vectors, and the device looks up the rows. The table holds all words seen
    so far, 4 dim bytes each, with room for at most as many again, on the host and on every device in use. A call that
    finds more than 65,536 words in it (200 MB at 768 features) clears it first. The host also caches the last 65,536
    captions.

    Args:
        dim: feature width of a token, at least 2.
        max_tokens: maximum number of words of a caption, at least 1; the rest is dropped.

    Raises:
        UserError: a number is out of range, or dim * max_tokens is larger than 67,108,864 (256 MB).
    """

    def __init__(self, dim: int = 256, max_tokens: int = 32) -> None:
        check_whole_numbers("text encoder", least=2, dim=dim)
        check_whole_numbers("text encoder", max_tokens=max_tokens)
        if dim * max_tokens > _MAX_FEATURES:
            raise UserError(
                f"text encoder: {max_tokens:,} tokens of {dim:,} features are more than {_MAX_FEATURES:,} numbers: "
                "lower dim or max_tokens"
            )
        self.dim = dim
        self.max_tokens = max_tokens
        self._positions = sinusoidal_positions(max_tokens, dim)
        self._words = _WordTable(dim)
        self._rows_of = lru_cache(maxsize=_CAPTIONS_KEPT)(self._find_rows)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the options only; the table of words is rebuilt on use."""
        return type(self), (self.dim, self.max_tokens)

    def __call__(self, captions: Sequence[str], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Encode B captions; see `TextEncoder`."""
        if len(self._words) > _WORDS_KEPT:
            self._words = _WordTable(self.dim)
            self._rows_of.cache_clear()
        found = np.array([self._rows_of(caption) for caption in captions], np.int64)
        rows = to_device(torch.from_numpy(found.reshape(-1, self.max_tokens)), device)
        mask = rows != 0
        features = nn.functional.embedding(rows, self._words.on(rows.device))
        # features + mask * positions in one pass. The product is exact; padding takes row 0 of the table, zeros.
        return features.addcmul_(mask[..., None].float(), to_device(self._positions, device)), mask

    def fingerprint(self) -> dict[str, Any]:
        """Return the name and the options."""
        return {"name": "hashing", "dim": self.dim, "max_tokens": self.max_tokens}

    def _find_rows(self, caption: str) -> np.ndarray:
        """Return the table rows of a caption's words, (max_tokens,), 0 on padding."""
        words = re.findall(r"\w+", caption.lower())[: self.max_tokens] or [_EMPTY_CAPTION]
        rows = np.zeros(self.max_tokens, np.int32)
        rows[: len(words)] = [self._words.row(word) for word in words]
        return rows


class _WordTable:
    """Table with sqrt(dim) times the vector of each word seen so far; row 0 is zero and belongs to padding."""

    def __init__(self, dim: int) -> None:
        self._row_of: dict[str, int] = {}
        self._table = np.zeros((1024, dim), np.float32)
        self._copies: dict[torch.device, tuple[Tensor, int]] = {}  # with the number of filled rows

    def __len__(self) -> int:
        return len(self._row_of) + 1

    def row(self, word: str) -> int:
        """Return the row of a word, adding one for a new word."""
        row = self._row_of.get(word)
        if row is None:
            row, (num_rows, dim) = len(self), self._table.shape
            if row == num_rows:
                self._table = np.concatenate([self._table, np.zeros_like(self._table)])
            self._table[row] = (dim**0.5 * word_vector(word, dim)).numpy()
            self._row_of[word] = row
        return row

    @torch.inference_mode(False)  # a table created in inference mode could not be extended in training
    def on(self, device: torch.device) -> Tensor:
        """Return the table on a device, after copying the rows that are new since the last call."""
        copy, num_filled = self._copies.get(device, (torch.empty(0), 0))
        if len(copy) != len(self._table):
            copy, num_filled = torch.empty(self._table.shape, device=device), 0
        if num_filled < len(self):
            copy[num_filled : len(self)] = to_device(torch.from_numpy(self._table[num_filled : len(self)]), device)
            self._copies[device] = copy, len(self)
        return copy


def word_vector(word: str, dim: int) -> Tensor:
    """Return the (dim,) unit vector of a word, drawn from a generator that is seeded with the word's hash."""
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
    name: TextEncoderName | TextEncoder, path: str | None = None, dim: int | None = None, max_tokens: int | None = None
) -> TextEncoder:
    """Return the named encoder.

    Args:
        name: name of the encoder; an encoder object is returned unchanged.
        path: folder of its weights, for encoders with weights.
        dim: feature width of a token; encoders of fixed width accept only theirs.
        max_tokens: maximum number of tokens of a caption; None for the encoder's default.

    Raises:
        UserError: the options contradict each other, or the weights cannot be read.
    """
    if isinstance(name, TextEncoder):
        if path is not None or dim not in (None, name.dim) or max_tokens not in (None, name.max_tokens):
            raise UserError(
                f"text_encoder: {type(name).__name__} has {name.max_tokens} tokens with {name.dim} features: leave out "
                "text_encoder_path, caption_dim and max_caption_tokens"
            )
        return name
    if name == "hashing":
        if path is not None:
            raise UserError(f"text_encoder_path: the hashing encoder has no weights: leave out '{path}'")
        return HashingTextEncoder(dim or 256, max_tokens or 32)
    if name == "minilm":
        return MiniLMTextEncoder(path, dim, max_tokens)
    if name == "clip":
        if path is None:
            raise UserError(
                "text_encoder: 'clip' needs a model: set data.text_encoder_path to the folder of weights and tokenizer"
            )
        return CLIPTextEncoder(path, dim, max_tokens)
    raise UserError(f"text_encoder: unknown '{name}': choose 'hashing', 'clip' or 'minilm'")
