"""The Mamba mixer of a factorized video scan: along space or along time, never both at once.

Axes: B batch, F frames, L tokens of a frame, D width.
"""

from typing import Any

from einops import rearrange
from torch import Tensor, nn

from zigma_pl.nn.mixer import MambaMixer
from zigma_pl.scan.schedule import Axis

# What is one sequence: the tokens of a frame, which lie together already, or a place's tokens in all frames.
_SEQUENCES: dict[Axis, str] = {"space": "(b f) l d", "time": "(b l) f d"}


class FactorizedMixer(MambaMixer):
    """Mix the tokens of clips, (B, F L, D) frame after frame, within each frame or within each place over the frames.

    Only the mixer sees the sequences apart: cross-attention and all else in a block treat tokens one by one, and there
    a clip keeps its one caption. Sequences in space are a view; those in time are copied before and after the mixer.

    Args:
        options: as of MambaMixer.
        axis: what a sequence runs along.
        num_frames: F.
    """

    def __init__(self, *options: Any, axis: Axis, num_frames: int) -> None:
        super().__init__(*options)
        self.axis: Axis = axis
        self.num_frames = num_frames

    def forward(self, tokens: Tensor, visit_order: Tensor | None = None) -> Tensor:
        """Mix tokens (B, F L, D), or sequences of them as `sequences` gives; visit_order, int32, is (L,) or (F,)."""
        assert visit_order is not None
        if tokens.shape[1] == len(visit_order):
            return super().forward(tokens, visit_order)
        return self.clips(super().forward(self.sequences(tokens), visit_order), len(tokens))

    def add_norm_mix(
        self,
        x: Tensor,
        branch: Tensor | None,
        branch_gate: Tensor | None,
        norm: nn.RMSNorm,
        shift: Tensor,
        scale: Tensor,
        visit_order: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Do what MambaMixer does, on sequences; each is given the gate, shift and scale, (B, 1, D), of its clip."""
        sequences = self.sequences(x)
        num_repeats = len(sequences) // len(x)
        if branch is not None:
            assert branch_gate is not None
            branch, branch_gate = self.sequences(branch), branch_gate.repeat_interleave(num_repeats, dim=0)
        shift, scale = (vector.repeat_interleave(num_repeats, dim=0) for vector in (shift, scale))
        added, mixed = super().add_norm_mix(sequences, branch, branch_gate, norm, shift, scale, visit_order)
        return self.clips(added, len(x)), self.clips(mixed, len(x))

    def sequences(self, tokens: Tensor) -> Tensor:
        """Cut tokens (B, F L, D) into (B F, L, D) in space, (B L, F, D) in time."""
        return rearrange(tokens, f"b (f l) d -> {_SEQUENCES[self.axis]}", f=self.num_frames)

    def clips(self, sequences: Tensor, batch_size: int) -> Tensor:
        """Put sequences back as (B, F L, D)."""
        return rearrange(sequences, f"{_SEQUENCES[self.axis]} -> b (f l) d", b=batch_size, f=self.num_frames)
