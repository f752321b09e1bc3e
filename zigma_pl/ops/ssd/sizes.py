"""Sizes of the tensors of Mamba-2.

Axes: B batch, L tokens, E inner width, H heads, P width of a head, G groups, N state.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """Sizes of a scan, and the parts of the rows that they imply."""

    num_heads: int
    head_dim: int
    num_groups: int
    num_states: int

    @property
    def numbers(self) -> list[int]:
        """All fields, for custom ops."""
        return [self.num_heads, self.head_dim, self.num_groups, self.num_states]

    @property
    def parts(self) -> list[int]:
        """Columns of the projection: gate; x, B and C; step sizes."""
        inner = self.num_heads * self.head_dim
        return [inner, inner + 2 * self.num_groups * self.num_states, self.num_heads]

    def are_aligned(self, itemsize: int) -> bool:
        """Return whether rows of all parts start at multiples of 16 bytes in the projection and in the convolution."""
        gate, convolved, steps = self.parts
        return not any(columns * itemsize % 16 for columns in (gate, convolved, gate + convolved + steps))

    def split(self, convolved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return x (B, L, H, P), B and C (B, L, G, N) of rows (B, L, E + 2 G N)."""
        terms = self.num_groups * self.num_states
        x, B, C = convolved.split([self.num_heads * self.head_dim, terms, terms], -1)
        groups = (self.num_groups, self.num_states)
        return self.as_heads(x), B.unflatten(-1, groups), C.unflatten(-1, groups)

    def as_heads(self, rows: Tensor) -> Tensor:
        """View (B, L, E) as (B, L, H, P)."""
        return rows.unflatten(-1, (self.num_heads, self.head_dim))
