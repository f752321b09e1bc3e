"""Mixers on the sequences of a factorized video scan, which run along space or along time.

Axes: B batch, F frames, L tokens of a frame, D width.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from zigma_pl.models.mixers.base import Branch, Cut, Mixer, Visit
from zigma_pl.ops.rows import UnscaledRows
from zigma_pl.scan.schedule import Axis

# A sequence contains the tokens of one frame, which are contiguous, or the tokens of one grid position in all frames.
_SEQUENCES: dict[Axis, str] = {"space": "(b f) l d", "time": "(b l) f d"}


@dataclass(frozen=True)
class Sequences:
    """Splits clips, (B, F L, D) frame after frame, into sequences and runs a mixer on each of them.

    Only the mixer works on separate sequences. All other parts of a block, such as cross-attention to the caption of
    the clip, process tokens independently. The orders of a visit are those of one sequence: (L,) or (k, L) in space,
    (F,) or (k, F) in time.

    Args:
        axis: axis along which a sequence runs.
        num_frames: F.
    """

    axis: Axis
    num_frames: int

    def cut(self, tokens: Tensor) -> Tensor:
        """Split tokens (B, F L, D) into sequences (B F, L, D) in space, (B L, F, D) in time."""
        return rearrange(tokens, f"b (f l) d -> {_SEQUENCES[self.axis]}", f=self.num_frames)

    def join(self, sequences: Tensor, batch_size: int) -> Tensor:
        """Join sequences to (B, F L, D)."""
        return rearrange(sequences, f"{_SEQUENCES[self.axis]} -> b (f l) d", b=batch_size, f=self.num_frames)

    def mix(self, mixer: Mixer, tokens: Tensor, visit: Visit) -> Tensor:
        """Run `Mixer.mix` on each sequence."""
        return self.join(mixer.mix(self.cut(tokens), visit), len(tokens))

    def add_norm_mix(
        self,
        mixer: Mixer,
        x: Tensor,
        branch: Branch | None,
        norm: nn.RMSNorm,
        shift: Tensor,
        scale: Tensor,
        visit: Visit,
    ) -> tuple[Tensor, Tensor | UnscaledRows, Tensor | None]:
        """Run `Mixer.add_norm_mix` on each sequence; the norm writes their rows one after the other at no cost."""
        cut = Cut(self.length(x.shape[1]))
        if self.axis == "time" or mixer.wants_rows_arranged(visit):
            if visit.order is None or visit.order.ndim > 1:
                cut = cut._replace(inverse=self._inverse(x, None))
            else:
                assert visit.inverse is not None
                cut, visit = cut._replace(inverse=self._inverse(x, visit.inverse)), visit.arranged()
        return mixer.add_norm_mix(x, branch, norm, shift, scale, visit, cut)

    def length(self, num_tokens: int) -> int:
        """Return the number of tokens of a sequence, L in space, F in time, for clips with F L tokens."""
        return num_tokens // self.num_frames if self.axis == "space" else self.num_frames

    def _inverse(self, x: Tensor, inverse: Tensor | None) -> Tensor:
        """Return the index of each token's row, (F L,) int32, if the rows of sequences follow each other.

        inverse: index of each token's row in its sequence, None for the order along the axis.
        """
        length = self.length(x.shape[1])
        if inverse is None:
            inverse = torch.arange(length, dtype=torch.int32, device=x.device)
        first = torch.arange(0, x.shape[1], length, dtype=torch.int32, device=x.device)  # row of each sequence
        frames, tokens = (first, inverse) if self.axis == "space" else (inverse, first)
        return (frames[:, None] + tokens).view(-1)
