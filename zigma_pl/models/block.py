"""One layer of ZigMa: adaptive norm, mixer along a visit order, optional cross-attention; and the final layer.

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
# What a block hands on beside x: in the legacy form the residual (B, L, D); in the prenorm form the last branch, which
# is still to be added. The next norm does that in the same pass over memory.
Carry = Tensor | Branch | None


class BlockConditions(NamedTuple):
    """What a block is conditioned on.

    modulation: (B, D), of which shifts, scales and gates are made.
    tokens: (B, T, D) that cross-attention attends to, None without.
    mask: (B, T) bool, True on tokens that count; None where all do.
    """

    modulation: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return x (1 + scale) + shift for x (B, L, D) and shift, scale (B, 1, D) (DiT, arXiv:2212.09748)."""
    return torch.addcmul(shift, x, 1 + scale)


def zero_linear(in_features: int, out_features: int) -> nn.Linear:
    """Return a linear layer that starts at zero, so that what it gates or ends starts as nothing."""
    layer = nn.Linear(in_features, out_features)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class ZigzagBlock(nn.Module):
    """An adaLN-Zero block around a mixer and, with tokens to attend to, a cross-attention.

    residual="prenorm": x + gate * mixer(modulate(norm(x))), the usual residual stream;
    the last sum is left to the next norm.
    residual="legacy": the form of the released ZigMa checkpoints, in which the normalised value carries the branch:
    r = x + residual, n = norm(r), and (n + gate * mixer(modulate(n)), r) goes on.

    Args:
        width: D.
        mixer: mixes the tokens.
        cross_attention: maps tokens, the condition's tokens and their mask to (B, L, D); None without such a condition.
        residual: which of the two forms above.
        sequences: what the mixer takes clips apart into; None for all tokens as one sequence.
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

    def forward(self, x: Tensor, carry: Carry, conditions: BlockConditions, visit: Visit) -> tuple[Tensor, Carry]:
        """Run the block.

        Args:
            x: (B, L, D) tokens.
            carry: what the block before handed on beside x, None in the first.
            conditions: what the block is conditioned on.
            visit: the order in which the mixer visits the tokens.

        Returns: x and the carry to hand to the next block or the final layer.
        """
        modulation = self.modulation(conditions.modulation)[:, None].chunk(3 * self.num_branches, dim=-1)
        run = self._run_legacy if self.residual == "legacy" else self._run_prenorm
        return run(x, carry, modulation, visit, conditions)

    def _run_prenorm(
        self,
        x: Tensor,
        carry: Carry,
        modulation: tuple[Tensor, ...],
        visit: Visit,
        conditions: BlockConditions,
    ) -> tuple[Tensor, Carry]:
        shift, scale, gate, *cross = modulation
        assert carry is None or isinstance(carry, Branch)
        if self.sequences is None:
            x, rows, inverse = self.mixer.add_norm_mix(x, carry, self.norm, shift, scale, visit)
        else:
            x, rows, inverse = self.sequences.add_norm_mix(self.mixer, x, carry, self.norm, shift, scale, visit)
        branch = Branch(rows, gate, inverse)
        if self.cross_attention is not None:
            assert self.cross_norm is not None
            shift, scale, cross_gate = cross
            x, query = add_branch_and_norm(x, branch, self.cross_norm, shift, scale)
            branch = Branch(self.cross_attention(query, conditions.tokens, conditions.mask), cross_gate)
        return x, branch

    def _run_legacy(
        self,
        x: Tensor,
        residual: Carry,
        modulation: tuple[Tensor, ...],
        visit: Visit,
        conditions: BlockConditions,
    ) -> tuple[Tensor, Carry]:
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
            x = torch.addcmul(x, gate, self.cross_attention(query, conditions.tokens, conditions.mask))
        return x, residual


class FinalLayer(nn.Module):
    """Norm and zero-initialised projection of tokens (B, L, D) to patches (B, L, patch_features).

    The prenorm form is modulated by the conditions (DiT); the legacy form is RMSNorm then LayerNorm, unmodulated.
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

    def forward(self, x: Tensor, carry: Carry, conditions: BlockConditions) -> Tensor:
        """Project x and what the last block handed on beside it (None where it adds its branches itself)."""
        if self.modulation is not None:
            shift, scale = self.modulation(conditions.modulation)[:, None].chunk(2, dim=-1)
            assert carry is None or isinstance(carry, Branch)
            return self.projection(add_branch_and_norm(x, carry, self.norm, shift, scale)[1])
        assert self.legacy_norm is not None
        assert carry is None or isinstance(carry, Tensor)
        x = x if carry is None else x + carry
        return self.projection(self.norm(self.legacy_norm(x)))
