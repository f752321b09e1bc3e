"""Counts of arithmetic operations by kind, and a registry of formulas for ops.

A multiply-add counts as 2, any other operation or elementary function (division, maximum, exp, tanh, rsqrt) as 1, and
data movement, such as copies and lookups, as 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from operator import add
from typing import Any

from torch.utils.flop_counter import register_flop_formula


@dataclass(frozen=True)
class Flops:
    """Arithmetic operations by kind.

    Args:
        matrix_products: products in linear layers.
        attention: the two products of attention, of queries with keys and of weights with values.
        convolution: products and sums over the taps.
        scan: the selective scan, including softplus, skip and gate.
        elementwise: all others: norms, softmax, activations, modulation, sums, biases.
    """

    matrix_products: int = 0
    attention: int = 0
    convolution: int = 0
    scan: int = 0
    elementwise: int = 0

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(*map(add, vars(self).values(), vars(other).values()))  # thousands of times per count

    def __radd__(self, zero: int) -> "Flops":
        """Return self, since sums, such as those of FlopCounterMode, start with 0."""
        assert zero == 0
        return self

    @property
    def total(self) -> int:
        """Sum over all kinds."""
        return sum(vars(self).values())

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of products, attention and convolutions, which many papers, such as DiT's, call FLOPs."""
        return (self.matrix_products + self.attention + self.convolution) // 2


Formula = Callable[..., Flops]
"""formula(*args, out_shape, **kwargs) with an op's arguments and output, in which tensors are replaced by shapes."""

FORMULAS: dict[Any, Formula] = {}  # for ops of this package, by torch.ops.zigma_pl.NAME

SIGMOID = 4  # 1 / (1 + exp(-x))
SILU, SILU_BACKWARD = 4, 9  # x / (1 + exp(-x)); recompute s = sigmoid(x) (4), s (1 + x (1 - s)) dy
SOFTPLUS = 2  # log1p(exp(x))


def counts_operations_of(*ops: Any) -> Callable[[Formula], Formula]:
    """Register a formula for ops, in FORMULAS by kind and with PyTorch's FlopCounterMode as a total."""

    def register(formula: Formula) -> Formula:
        FORMULAS.update(dict.fromkeys(ops, formula))
        register_flop_formula(ops)(lambda *args, **kwargs: formula(*args, **kwargs).total)
        return formula

    return register
