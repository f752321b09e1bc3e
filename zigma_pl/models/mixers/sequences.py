"""Any mixer on the sequences of a factorized video scan: along space or along time, never both at once.

Axes: B batch, F frames, L tokens of a frame, D width.
"""

from dataclasses import dataclass

from einops import rearrange
from torch import Tensor, nn

from zigma_pl.models.mixers.base import Branch, Mixer, Visit
from zigma_pl.ops.rows import take_rows
from zigma_pl.scan.schedule import Axis

# What is one sequence: the tokens of a frame, which lie together already, or a place's tokens in all frames.
_SEQUENCES: dict[Axis, str] = {"space": "(b f) l d", "time": "(b l) f d"}


@dataclass(frozen=True)
class Sequences:
    """The sequences that a layer cuts clips into, (B, F L, D) frame after frame, and how a mixer is run on them.

    Only the mixer sees the sequences apart: cross-attention and all else in a block treat tokens one by one, and there
    a clip keeps its one caption. Sequences in space are a view; those in time are copied before and after the mixer.
    Visits are of a sequence: their orders are (L,) or (k, L) in space, (F,) or (k, F) in time.

    Args:
        axis: what a sequence runs along.
        num_frames: F.
    """

    axis: Axis
    num_frames: int

    def cut(self, tokens: Tensor) -> Tensor:
        """Cut tokens (B, F L, D) into (B F, L, D) in space, (B L, F, D) in time."""
        return rearrange(tokens, f"b (f l) d -> {_SEQUENCES[self.axis]}", f=self.num_frames)

    def join(self, sequences: Tensor, batch_size: int) -> Tensor:
        """Put sequences back as (B, F L, D)."""
        return rearrange(sequences, f"{_SEQUENCES[self.axis]} -> b (f l) d", b=batch_size, f=self.num_frames)

    def mix(self, mixer: Mixer, tokens: Tensor, visit: Visit) -> Tensor:
        """Do what `Mixer.mix` does, on each sequence."""
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
    ) -> tuple[Tensor, Tensor, None]:
        """Do what `Mixer.add_norm_mix` does, on sequences; each has gate, shift and scale, (B, 1, D), of its clip."""
        sequences = self.cut(x)
        num_repeats = len(sequences) // len(x)
        if branch is not None:
            branch = Branch(self.cut(branch.raster_rows()), branch.gate.repeat_interleave(num_repeats, dim=0))
        shift, scale = (vector.repeat_interleave(num_repeats, dim=0) for vector in (shift, scale))
        added, mixed, inverse = mixer.add_norm_mix(sequences, branch, norm, shift, scale, visit)
        mixed = mixed if inverse is None else take_rows(mixed, inverse)
        return self.join(added, len(x)), self.join(mixed, len(x)), None
