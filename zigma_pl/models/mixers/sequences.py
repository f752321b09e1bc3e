"""Mixers on the sequences of a factorized video scan, which run along space or along time.

Axes: B batch, F frames, L tokens of a frame, D width.
"""

from dataclasses import dataclass

from einops import rearrange
from torch import Tensor, nn

from zigma_pl.models.mixers.base import Branch, Mixer, Visit
from zigma_pl.ops.rows import take_rows
from zigma_pl.scan.schedule import Axis

# A sequence contains the tokens of one frame, which are contiguous, or the tokens of one grid position in all frames.
_SEQUENCES: dict[Axis, str] = {"space": "(b f) l d", "time": "(b l) f d"}


@dataclass(frozen=True)
class Sequences:
    """Splits clips, (B, F L, D) frame after frame, into sequences and runs a mixer on each of them.

    Only the mixer works on separate sequences. All other parts of a block, such as cross-attention to the caption of
    the clip, process tokens independently. Sequences in space are views; sequences in time are copied before and after
    the mixer. The orders of a visit are those of one sequence: (L,) or (k, L) in space, (F,) or (k, F) in time.

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
    ) -> tuple[Tensor, Tensor, None]:
        """Run `Mixer.add_norm_mix` on each sequence, with gate, shift and scale, (B, 1, D), of its clip."""
        sequences = self.cut(x)
        num_repeats = len(sequences) // len(x)
        if branch is not None:
            branch = Branch(self.cut(branch.raster_rows()), branch.gate.repeat_interleave(num_repeats, dim=0))
        shift, scale = (vector.repeat_interleave(num_repeats, dim=0) for vector in (shift, scale))
        added, mixed, inverse = mixer.add_norm_mix(sequences, branch, norm, shift, scale, visit)
        mixed = mixed if inverse is None else take_rows(mixed, inverse)
        return self.join(added, len(x)), self.join(mixed, len(x)), None
