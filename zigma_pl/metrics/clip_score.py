"""The CLIP score of pictures and their captions (arXiv:2104.08718)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from zigma_pl.encoders.weights import loading
from zigma_pl.errors import UserError
from zigma_pl.metrics.extractors.clip import CLIPImage

SCALE = 100.0
MAX_TOKENS = 77


class ClipScore:
    """100 max(cos(picture, caption), 0) on CLIP ViT-L/14; of a set, the mean over its samples.

    That is equation 1 of arXiv:2104.08718 with two changes that papers on text-to-image models make: weight 100 instead
    of 2.5, and captions as they are, without "A photo depicts". Other CLIP weights give other scores.

    Args:
        weights: folder of a CLIPModel with its tokenizer; None for where `python -m zigma_pl weights` puts it.

    Raises:
        UserError: the weights are missing or broken.
    """

    def __init__(self, weights: str | Path | None = None) -> None:
        from transformers import CLIPTokenizer

        self.pictures = CLIPImage(weights)
        folder = self.pictures.path.parent
        # Without these files transformers makes a tokenizer that knows no words, and says nothing.
        if not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
            raise UserError(f"clip_score: {folder} must hold the tokenizer too, vocab.json and merges.txt")
        with loading("clip_score", folder, "give the folder of a CLIPModel with its tokenizer"):
            self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        self.comparable = self.pictures.comparable

    @torch.no_grad()
    def __call__(self, pictures: Tensor, captions: Sequence[str]) -> Tensor:
        """Return the score of each picture with its caption, (B,) float32.

        Args:
            pictures: (B, 3 or 1, height, width) uint8.
            captions: B strings; what is longer than 77 tokens is cut off.
        """
        if len(pictures) != len(captions):
            raise UserError(f"clip_score: {len(pictures)} pictures but {len(captions)} captions")
        cosines = F.cosine_similarity(self.pictures(pictures), self.caption_features(captions))
        return SCALE * cosines.clamp(min=0)

    @torch.no_grad()
    def caption_features(self, captions: Sequence[str]) -> Tensor:
        """Return the projected features of captions, (B, d) float32."""
        network, device = self.pictures.network, self.pictures.device
        tokens = self.tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(device)
        with torch.autocast(device.type, enabled=False):
            states = network.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])  # type: ignore[operator]
            return network.text_projection(states.pooler_output)  # type: ignore[operator]

    def fingerprint(self) -> dict[str, Any]:
        """Return plain values that tell this score from others."""
        return {**self.pictures.fingerprint(), "name": "clip_score", "scale": SCALE, "max_tokens": MAX_TOKENS}

    def to(self, device: torch.device | str) -> Self:
        """Move the networks."""
        self.pictures.to(device)
        return self
