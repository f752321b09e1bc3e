"""The CLIP score of images and their captions (arXiv:2104.08718)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zigma_pl.core.errors import UserError
from zigma_pl.encoders.weights import loading
from zigma_pl.evaluation.metrics.base import ScoreMetric, require_each_once
from zigma_pl.evaluation.metrics.extractors.clip import CLIPImage

SCALE = 100.0
MAX_TOKENS = 77


class ClipScore(ScoreMetric):
    """Mean of 100 max(cos(image, caption), 0) over all samples, with CLIP ViT-L/14, as a `torchmetrics.Metric`.

    This is equation 1 of arXiv:2104.08718 with two changes that are common for text-to-image models: a weight of 100
    instead of 2.5, and captions without the prefix "A photo depicts". Other CLIP weights give other scores.

    Args:
        weights: folder of a CLIPModel with its tokenizer; None for the default folder of `python -m zigma_pl weights`.
            The networks are moved to the metric's device, and are not part of its `state_dict`.
        options: options of `torchmetrics.Metric`.

    Raises:
        UserError: the weights are missing or invalid.
    """

    is_differentiable = False
    higher_is_better = True

    total: Tensor
    count: Tensor
    ids: list[Tensor]

    def __init__(self, weights: str | Path | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_list("ids", torch.empty(0, dtype=torch.int64))
        self.load(weights)

    def load(self, weights: str | Path | None) -> None:
        """Load both networks and the tokenizer."""
        from transformers import CLIPTokenizer

        self.pictures = CLIPImage(weights)
        folder = self.pictures.path.parent
        # Without these files transformers silently creates a tokenizer with an empty vocabulary.
        if not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
            raise UserError(f"clip_score: {folder} has no tokenizer: add vocab.json and merges.txt")
        with loading("clip_score", folder, "give the folder of a CLIPModel with its tokenizer"):
            self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        self.comparable = self.pictures.comparable

    def update(self, pictures: Tensor, captions: Sequence[str], sample_ids: Tensor | None = None) -> None:
        """Add a batch, which may be empty.

        Args:
            pictures: (B, 3 or 1, height, width) uint8.
            captions: B strings; truncated to 77 tokens.
            sample_ids: (B,) int64, unique over all processes; if given, duplicate samples raise an error.

        Raises:
            UserError: the numbers of images, captions and ids differ, or a score is not finite.
        """
        scores = self.scores(pictures, captions)
        self.total = self.total + scores.to(self.device).double().sum()
        self.count = self.count + len(scores)
        if sample_ids is not None:
            if sample_ids.shape != scores.shape:
                raise UserError(
                    f"clip_score: got sample_ids of shape {tuple(sample_ids.shape)} for {len(scores)} images: give one "
                    "id per image"
                )
            self.ids.append(sample_ids.to(self.device))

    def compute(self) -> Tensor:
        """Return the mean over the samples of all processes, a float64 scalar.

        Raises:
            UserError: there are no samples, or one occurs twice.
        """
        require_each_once(self.joined("ids"))
        if not self.count:
            raise UserError("clip_score: there are no samples: call update before compute")
        return self.total / self.count

    @torch.no_grad()
    def scores(self, pictures: Tensor, captions: Sequence[str]) -> Tensor:
        """Return the score of each image with its caption, (B,) float32; arguments and errors as in `update`."""
        if len(pictures) != len(captions):
            raise UserError(
                f"clip_score: got {len(pictures)} images but {len(captions)} captions: give one caption per image"
            )
        self.pictures.to(self.device)
        if not len(pictures):
            return torch.empty(0)
        cosines = F.cosine_similarity(self.pictures(pictures), self.caption_features(captions))
        if not cosines.isfinite().all():
            raise UserError(
                f"clip_score: scores are not finite, so the weights in {self.pictures.path} are invalid: replace them"
            )
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
        """Return plain values that identify this score."""
        return {**self.pictures.fingerprint(), "name": "clip_score", "scale": SCALE, "max_tokens": MAX_TOKENS}
