"""Base classes of token mixers, and the visit order that they receive.

Axes: B batch, L tokens, D width, A axes of the grid (2 for images, 3 for clips).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from zigma_pl.ops.norms import add_norm_modulate
from zigma_pl.ops.rows import UnscaledRows, take_rows

ActivationMemory = Literal["auto", "lean", "fast"]


class Visit(NamedTuple):
    """The order in which a layer visits its tokens, and the positions of the tokens.

    positions: (L, A) float32, row and column of each token (frame, row and column for clips), in raster order.
    order: raster index of the token that is visited at each step: (L,) int32; (k, L) for a mixer with k directions;
        (B, L) for an order per sample. None to process rows in the order in which they are stored.
    inverse: step at which each token is visited, same shape as `order`; None without an order.
    mask: (B, L) bool, True on valid tokens; None if all are valid.
    arranged_by: the order in which the rows are stored, None for raster order.
    """

    positions: Tensor
    order: Tensor | None = None
    inverse: Tensor | None = None
    mask: Tensor | None = None
    arranged_by: Tensor | None = None

    def arranged(self) -> "Visit":
        """Return the visit for rows that are stored in this order."""
        return self._replace(order=None, inverse=None, arranged_by=self.order)

    def row_positions(self) -> Tensor:
        """Return the position of each stored row, (L, A), or (B, L, A) if every sample has its own order."""
        return self.positions if self.arranged_by is None else self.positions[self.arranged_by.long()]


class Branch(NamedTuple):
    """The output of a residual branch that has not been added to the residual stream yet: x + gate * rows.

    mixed: the rows, (B, L, D), or `UnscaledRows`.
    gate: (B, 1, D).
    inverse: index of each token's row, (L,) or (B, L) int32; None if the rows are in raster order.
    """

    mixed: Tensor | UnscaledRows
    gate: Tensor
    inverse: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """The rows, (B, L, D)."""
        return self.mixed.scaled() if isinstance(self.mixed, UnscaledRows) else self.mixed

    def raster_rows(self) -> Tensor:
        """Return the rows in raster order."""
        rows = self.rows
        return rows if self.inverse is None else take_rows(rows, self.inverse)


class Cut(NamedTuple):
    """How the L rows of each sample are cut into sequences, which a mixer processes separately.

    length: tokens of a sequence, a divisor of L; sequences follow each other.
    inverse: index of each token's row, (L,) int32; None if the rows are in raster order.
    """

    length: int
    inverse: Tensor | None = None


class Mixer(nn.Module, ABC):
    """A layer that mixes tokens: (B, L, D) -> (B, L, D).

    Subclasses implement `forward`, in one of two ways:

    - With `takes_rows_in_visit_order = True`, the rows passed to `forward` are already arranged in visit order, and
      `visit.order` is None. This costs nothing: the norm before the mixer writes the rows in this order, and the norm
      after it reads them back.
    - Otherwise rows are in raster order, and `forward` either reads them through `visit.order`, as Mamba's kernels do,
      or ignores the order, as attention does.
    """

    takes_rows_in_visit_order: ClassVar[bool] = False
    # Mixers that can recompute activations set this to their option; "auto" leaves the choice to `fit`.
    activation_memory: ActivationMemory = "fast"

    @abstractmethod
    def forward(self, tokens: Tensor, visit: Visit) -> Tensor:
        """Mix tokens (B, L, D); the rows of the output are in the same order as those of the input."""

    def wants_rows_arranged(self, visit: Visit) -> bool:
        """Return whether `forward` expects rows that are arranged in the order of this visit."""
        return self.takes_rows_in_visit_order and visit.order is not None

    def mix_unscaled(self, tokens: Tensor, visit: Visit) -> Tensor | UnscaledRows:
        """Run `forward`; mixers that end with a norm and a product may override this to return `UnscaledRows`."""
        mixed: Tensor = self(tokens, visit)
        return mixed

    def mix(self, tokens: Tensor, visit: Visit) -> Tensor:
        """Mix tokens (B, L, D), with input and output in raster order."""
        if not self.wants_rows_arranged(visit):
            return self(tokens, visit)
        assert visit.order is not None
        assert visit.inverse is not None
        return take_rows(self(take_rows(tokens, visit.order), visit.arranged()), visit.inverse)

    def add_norm_mix(
        self,
        x: Tensor,
        branch: Branch | None,
        norm: nn.RMSNorm,
        shift: Tensor,
        scale: Tensor,
        visit: Visit,
        cut: Cut | None = None,
    ) -> tuple[Tensor, Tensor | UnscaledRows, Tensor | None]:
        """Add a branch to x, (B, L, D), and mix the normalised and modulated sum.

        Mixers with a fused kernel for all of this override the method.

        Args:
            x: the residual stream, in raster order.
            branch: the branch to add to x, None in the first layer.
            norm: norm of the sum.
            shift, scale: (B, 1, D), modulation of the normalised sum.
            visit: the visit order of this layer.
            cut: how the rows are cut into sequences, whose rows are then in the order that the mixer expects and whose
                visit is the one of a single sequence; None if all rows are one sequence.

        Returns: the sum, the mixed rows, and the index of each token's mixed row (None for raster order).
        """
        if cut is None:
            inverse = visit.inverse if self.wants_rows_arranged(visit) else None
            x, tokens = add_branch_and_norm(x, branch, norm, shift, scale, inverse)
            return x, self.mix_unscaled(tokens, visit if inverse is None else visit.arranged()), inverse
        x, tokens = add_branch_and_norm(x, branch, norm, shift, scale, cut.inverse)
        sequences = tokens.reshape(-1, cut.length, tokens.shape[2])
        return x, self.mix_unscaled(sequences, visit).reshape(tokens.shape), cut.inverse

    def scaled_weights(self, dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
        """Return matrices and factors of their columns whose products `forward` uses, (Y, X) and (X,).

        The keys are attributes that `forward` takes the products from if they are set, in the dtype of matrix products.
        The products of all layers can be computed together, and in sampling, where weights are fixed, in advance.

        Args:
            dtype: the dtype of matrix products.
        """
        return {}

    def extra_activation_bytes(self, num_tokens: int, itemsize: int) -> int:
        """Return how many more bytes the layer would store in a training step after `store_more_activations`.

        Args:
            num_tokens: number of tokens of all samples of a batch.
            itemsize: bytes of an activation.
        """
        return 0

    def store_more_activations(self) -> None:
        """From now on, store activations for the backward pass instead of recomputing them, if that is left open."""
        if self.activation_memory == "auto":
            self.activation_memory = "fast"

    def projections(self) -> Sequence[nn.Linear]:
        """Return the linear layers that a transformer initialises like its own; by default none."""
        return ()


def add_branch_and_norm(
    x: Tensor,
    branch: Branch | None,
    norm: nn.RMSNorm | nn.LayerNorm,
    shift: Tensor,
    scale: Tensor,
    out_inverse: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return x plus a branch, and the normalised and modulated sum; see `ops.norms.add_norm_modulate`."""
    assert norm.eps is not None
    mixed, gate, inverse = (None, None, None) if branch is None else branch
    return add_norm_modulate(
        *(x, mixed, gate, norm.weight, shift, scale),
        epsilon=norm.eps,
        centred=isinstance(norm, nn.LayerNorm),
        branch_inverse=inverse,
        out_inverse=out_inverse,
    )


class MixerOptions(ABC):
    """Options of a mixer; subclasses are frozen dataclasses that YAML names by class_path.

    num_orders: number of visit orders that a layer uses: 1; 0 for mixers that ignore the order; k for mixers with k
        directions. Layers that use no order are skipped when orders are assigned to layers.
    takes_mask: whether the mixer supports a mask of valid tokens.
    """

    takes_mask: ClassVar[bool] = False

    @property
    def num_orders(self) -> int:
        """Number of visit orders that a layer uses."""
        return 1

    @abstractmethod
    def build(self, width: int) -> Mixer:
        """Build one layer for tokens of this width."""


Plan = MixerOptions | list[MixerOptions]
"""The mixer of all layers, or a list of mixers that is repeated over the layers."""


def layers_of(plan: Plan, depth: int) -> list[MixerOptions]:
    """Return the mixer of each of `depth` layers, repeating the plan."""
    entries = plan if isinstance(plan, list) else [plan]
    return [entries[layer % len(entries)] for layer in range(depth)]
