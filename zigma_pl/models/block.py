"""A block of ZigMa (adaptive norm, mixer along a visit order, optional cross-attention) and the final layer.

Axes: B batch, L tokens, T tokens of a condition, D width.
"""

from functools import partial
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from zigma_pl.models.layers.cross_attention import CrossAttention
from zigma_pl.models.mixers.base import Branch, Mixer, Visit, add_branch_and_norm
from zigma_pl.models.mixers.sequences import Sequences

Residual = Literal["prenorm", "legacy"]
Pending = Tensor | Branch | None
"""What the next block, or the final layer, still has to add to x; None for the first block.

With residual="prenorm" it is the last branch, which the next norm adds in the same pass over memory; with
residual="legacy" it is the residual (B, L, D).
"""


class BlockConditions(NamedTuple):
    """The embedded time and conditions, as blocks use them.

    modulation: (B, D), from which shifts, scales and gates are computed.
    tokens: (B, T, D) for cross-attention, None without it.
    bias: (B, T), added to the scaled products of queries and keys; None if all tokens are valid.
    """

    modulation: Tensor
    tokens: Tensor | None = None
    bias: Tensor | None = None


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return x (1 + scale) + shift for x (B, L, D) and shift, scale (B, 1, D) (DiT, arXiv:2212.09748)."""
    return torch.addcmul(shift, x, 1 + scale)


def zero_linear(in_features: int, out_features: int) -> nn.Linear:
    """Return a zero-initialised linear layer, for gates and final projections."""
    layer = nn.Linear(in_features, out_features)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class ZigzagBlock(nn.Module):
    """An adaLN-Zero block around a mixer and an optional cross-attention.

    residual="prenorm": x + gate * mixer(modulate(norm(x))), the usual residual stream, in which the last addition is
    left to the next norm.
    residual="legacy": the form of the released ZigMa checkpoints, in which the branch is added to the normalised value:
    with r = x + residual and n = norm(r), the block returns (n + gate * mixer(modulate(n)), r).

    Args:
        width: D.
        mixer: mixes the tokens.
        cross_attention: maps tokens, the condition's tokens and their mask to (B, L, D); None without a condition that
            has tokens.
        residual: one of the two forms above.
        sequences: how clips are split into sequences for the mixer; None if all tokens are one sequence.
    """

    def __init__(
        self,
        width: int,
        mixer: Mixer,
        cross_attention: CrossAttention | None = None,
        residual: Residual = "prenorm",
        sequences: Sequences | None = None,
    ) -> None:
        super().__init__()
        self.sequences = sequences
        self.residual: Residual = residual
        self.num_branches = 1 if cross_attention is None else 2
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.mixer = mixer
        self.cross_norm = None if cross_attention is None else nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.cross_attention = cross_attention
        self.modulation = nn.Sequential(nn.SiLU(), zero_linear(width, 3 * self.num_branches * width))

    def forward(self, x: Tensor, pending: Pending, conditions: BlockConditions, visit: Visit) -> tuple[Tensor, Pending]:
        """Run the block.

        Args:
            x: (B, L, D) tokens.
            pending: what the previous block left to be added to x; None for the first block.
            conditions: embedded time and conditions.
            visit: the order in which the mixer visits the tokens.

        Returns: x, and what is left to be added to it.
        """
        modulation = self.modulation(conditions.modulation)[:, None].chunk(3 * self.num_branches, dim=-1)
        run = self._run_legacy if self.residual == "legacy" else self._run_prenorm
        return run(x, pending, modulation, visit, conditions)

    def _run_prenorm(
        self,
        x: Tensor,
        pending: Pending,
        modulation: tuple[Tensor, ...],
        visit: Visit,
        conditions: BlockConditions,
    ) -> tuple[Tensor, Pending]:
        shift, scale, gate, *cross = modulation
        assert pending is None or isinstance(pending, Branch)
        if self.sequences is None:
            x, rows, inverse = self.mixer.add_norm_mix(x, pending, self.norm, shift, scale, visit)
        else:
            x, rows, inverse = self.sequences.add_norm_mix(self.mixer, x, pending, self.norm, shift, scale, visit)
        branch = Branch(rows, gate, inverse)
        if self.cross_attention is not None:
            assert self.cross_norm is not None
            shift, scale, cross_gate = cross
            x, query = add_branch_and_norm(x, branch, self.cross_norm, shift, scale)
            branch = Branch(self.cross_attention(query, conditions.tokens, conditions.bias), cross_gate)
        return x, branch

    def _run_legacy(
        self,
        x: Tensor,
        residual: Pending,
        modulation: tuple[Tensor, ...],
        visit: Visit,
        conditions: BlockConditions,
    ) -> tuple[Tensor, Pending]:
        shift, scale, gate, *cross = modulation
        assert residual is None or isinstance(residual, Tensor)
        residual = x if residual is None else x + residual
        x = self.norm(residual)
        tokens = modulate(x, shift, scale)
        mix = self.mixer.mix if self.sequences is None else partial(self.sequences.mix, self.mixer)
        x = torch.addcmul(x, gate, mix(tokens, visit))
        if self.cross_attention is not None:
            assert self.cross_norm is not None
            shift, scale, gate = cross
            query = modulate(self.cross_norm(x), shift, scale)
            x = torch.addcmul(x, gate, self.cross_attention(query, conditions.tokens, conditions.bias))
        return x, residual


class FinalLayer(nn.Module):
    """Norm and zero-initialised projection of tokens (B, L, D) to patches (B, L, patch_features).

    The prenorm form is modulated by the conditions, as in DiT; the legacy form is RMSNorm, then LayerNorm, unmodulated.
    """

    parameter_roles: ClassVar[dict[str, str]] = {"projection.weight": "projection"}

    def __init__(self, width: int, patch_features: int, residual: Residual = "prenorm") -> None:
        super().__init__()
        self.legacy_norm = nn.RMSNorm(width, eps=1e-5) if residual == "legacy" else None
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = None
        if residual == "prenorm":
            self.modulation = nn.Sequential(nn.SiLU(), zero_linear(width, 2 * width))
        self.projection = zero_linear(width, patch_features)

    def forward(self, x: Tensor, pending: Pending, conditions: BlockConditions) -> Tensor:
        """Project x after adding what the last block left to be added (None if there is nothing to add)."""
        if self.modulation is not None:
            shift, scale = self.modulation(conditions.modulation)[:, None].chunk(2, dim=-1)
            assert pending is None or isinstance(pending, Branch)
            return self.projection(add_branch_and_norm(x, pending, self.norm, shift, scale)[1])
        assert self.legacy_norm is not None
        assert pending is None or isinstance(pending, Tensor)
        x = x if pending is None else x + pending
        return self.projection(self.norm(self.legacy_norm(x)))
