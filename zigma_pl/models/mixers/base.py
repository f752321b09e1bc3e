"""What a token mixer promises, and what it is told about the order in which it visits its tokens.

Axes: B batch, L tokens, D width, A axes of the grid (2 for pictures, 3 for clips).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from zigma_pl.ops.norms import add_norm_modulate
from zigma_pl.ops.rows import take_rows


class Visit(NamedTuple):
    """In which order a layer visits its tokens, and where in the grid they lie.

    places: (L, A) float32, row and column of each token, of clips frame, row and column; in raster order.
    order: the token, by its raster index, that is visited at each step: (L,) int32; (k, L) for a mixer of k directions;
        (B, L), one for each sample, for all others. None where rows are to be taken as they lie.
    inverse: the step at which each token is visited, of order's shape; None without an order.
    mask: (B, L) bool, True on tokens that count; None where all do.
    arranged_by: the order that rows already lie in, None for raster order.
    """

    places: Tensor
    order: Tensor | None = None
    inverse: Tensor | None = None
    mask: Tensor | None = None
    arranged_by: Tensor | None = None

    def arranged(self) -> "Visit":
        """Return the visit of rows that have been put in the order."""
        return self._replace(order=None, inverse=None, arranged_by=self.order)

    def row_places(self) -> Tensor:
        """Return the place of each row as the rows lie: (L, A), or (B, L, A) where each sample has its own order."""
        return self.places if self.arranged_by is None else self.places[self.arranged_by.long()]


class Branch(NamedTuple):
    """The output of a branch that is still to be added to the residual stream: x + gate * rows.

    rows: (B, L, D).
    gate: (B, 1, D).
    inverse: the row of each token, (L,) or (B, L) int32; None where rows are in raster order.
    """

    rows: Tensor
    gate: Tensor
    inverse: Tensor | None = None

    def raster_rows(self) -> Tensor:
        """Return the rows in raster order."""
        return self.rows if self.inverse is None else take_rows(self.rows, self.inverse)


class Mixer(nn.Module, ABC):
    """One layer that mixes tokens: (B, L, D) -> (B, L, D).

    A subclass gives `forward`. How it meets the visit order is up to it:

    - With `takes_rows_in_visit_order`, `forward` gets rows that have been put in the order, at no cost: the norm before
      the mixer writes them so, and the norm after it reads them back. `visit.order` is None then.
    - Else rows are in raster order, and `forward` reads them through `visit.order` itself, as Mamba's kernels do, or
      ignores the order, as attention does.
    """

    takes_rows_in_visit_order: ClassVar[bool] = False

    @abstractmethod
    def forward(self, tokens: Tensor, visit: Visit) -> Tensor:
        """Mix tokens (B, L, D); the output has its rows where the input has them."""

    def wants_rows_arranged(self, visit: Visit) -> bool:
        """Whether `forward` is to be given rows that have been put in the order of this visit."""
        return self.takes_rows_in_visit_order and visit.order is not None

    def mix(self, tokens: Tensor, visit: Visit) -> Tensor:
        """Mix tokens in raster order, (B, L, D), to mixed tokens in raster order."""
        if not self.wants_rows_arranged(visit):
            return self(tokens, visit)
        assert visit.order is not None
        assert visit.inverse is not None
        return take_rows(self(take_rows(tokens, visit.order), visit.arranged()), visit.inverse)

    def add_norm_mix(
        self, x: Tensor, branch: Branch | None, norm: nn.RMSNorm, shift: Tensor, scale: Tensor, visit: Visit
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Add a branch to x, (B, L, D), and mix the normalised and modulated sum.

        A mixer with a kernel that does all of it overrides this.

        Args:
            x: the residual stream, in raster order.
            branch: what is still to be added to it, None in the first layer.
            norm: of the sum.
            shift, scale: (B, 1, D), the modulation of the normalised sum.
            visit: the order of this layer.

        Returns: the sum, the mixed rows, and the row of each token among them, None for raster order.
        """
        inverse = visit.inverse if self.wants_rows_arranged(visit) else None
        x, tokens = add_branch_and_norm(x, branch, norm, shift, scale, inverse)
        return x, self(tokens, visit if inverse is None else visit.arranged()), inverse

    def projections(self) -> Sequence[nn.Linear]:
        """Return linear layers that a transformer may initialise like its others; none unless a subclass has some."""
        return ()


def add_branch_and_norm(
    x: Tensor,
    branch: Branch | None,
    norm: nn.RMSNorm | nn.LayerNorm,
    shift: Tensor,
    scale: Tensor,
    out_inverse: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Add a branch to x and return the sum and its normalised and modulated rows; see `ops.norms.add_norm_modulate`."""
    assert norm.eps is not None
    rows, gate, inverse = (None, None, None) if branch is None else branch
    return add_norm_modulate(
        *(x, rows, gate, norm.weight, shift, scale),
        epsilon=norm.eps,
        centred=isinstance(norm, nn.LayerNorm),
        branch_inverse=inverse,
        out_inverse=out_inverse,
    )


class MixerOptions(ABC):
    """The options of a mixer; subclasses are frozen dataclasses, named in YAML by class_path.

    num_orders: how many of the backbone's orders a layer takes: 1; 0 for mixers that ignore the order; k for mixers of
        k directions. In a plan of several mixers only layers that take orders count.
    takes_mask: whether the mixer can leave out the tokens that a mask leaves out.
    """

    takes_mask: ClassVar[bool] = False

    @property
    def num_orders(self) -> int:
        """How many orders a layer takes."""
        return 1

    @abstractmethod
    def build(self, width: int) -> Mixer:
        """Make one layer for tokens of this width."""


Plan = MixerOptions | list[MixerOptions]


def layers_of(plan: Plan, depth: int) -> list[MixerOptions]:
    """Return the mixer of each of `depth` layers: the entries of the plan, over and over."""
    entries = plan if isinstance(plan, list) else [plan]
    return [entries[layer % len(entries)] for layer in range(depth)]
