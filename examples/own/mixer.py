"""Retention (arXiv:2307.08621) along the visit order: attention without softmax that decays with distance."""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import silu

from zigma_pl.mixers import Mixer, MixerOptions, Visit


class RetentionMixer(Mixer):
    """Mixes tokens (B, L, D) -> (B, L, D); each token attends to itself and to earlier ones in the visit order."""

    takes_rows_in_visit_order = True

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj = nn.Linear(width, 4 * width, bias=False)
        self.norm = nn.RMSNorm(width // num_heads)
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, tokens: Tensor, visit: Visit) -> Tensor:
        """Mix tokens (B, L, D), whose rows are in visit order."""
        parts = rearrange(self.in_proj(tokens), "b l (part h d) -> part b h l d", part=4, h=self.num_heads)
        query, key, value, gate = parts
        step = torch.arange(tokens.shape[1], device=tokens.device)
        head = torch.arange(self.num_heads, device=tokens.device)[:, None, None]
        distance = step[:, None] - step  # (L, L)
        decay = (1 - 2.0 ** (-1 - head)) ** distance.clamp(min=0) * (distance >= 0)  # (h, L, L)
        scores = query @ key.mT * query.shape[-1] ** -0.5 * decay.to(query.dtype)
        mixed = self.norm(scores @ value) * silu(gate)
        return self.out_proj(rearrange(mixed, "b h l d -> b l (h d)"))


@dataclass(frozen=True)
class Retention(MixerOptions):
    """Options of retention.

    Args:
        num_heads: number of heads, each with its own decay; must divide the width.
    """

    num_heads: int = 4

    def build(self, width: int) -> RetentionMixer:
        """Build one layer."""
        return RetentionMixer(width, self.num_heads)
