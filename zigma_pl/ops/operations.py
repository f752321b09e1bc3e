"""How many arithmetic operations an op takes: a record by kind, and the registration of an op's own formula.

A multiply-add counts as 2, any other operation or elementary function (division, maximum, exp, tanh, rsqrt) as 1, and
moving, copying or looking up as 0.
"""

from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

from torch.utils.flop_counter import register_flop_formula


@dataclass(frozen=True)
class Flops:
    """Arithmetic operations by kind.

    Args:
        matrix_products: of linear layers.
        attention: of the two products of every attention, queries with keys and weights with values.
        convolution: of the taps.
        scan: all that the selective scan does, with softplus, skip and gate.
        elementwise: everything else: norms, softmax, activations, modulation, sums, biases.
    """

    matrix_products: int = 0
    attention: int = 0
    convolution: int = 0
    scan: int = 0
    elementwise: int = 0

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(*(own + others for own, others in zip(astuple(self), astuple(other), strict=True)))

    def __radd__(self, zero: int) -> "Flops":
        """Return itself: sums, such as those of FlopCounterMode, begin with 0."""
        assert zero == 0
        return self

    @property
    def total(self) -> int:
        """All of them."""
        return sum(astuple(self))

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of products, attention and convolutions: what many papers, DiT's among them, call FLOPs."""
        return (self.matrix_products + self.attention + self.convolution) // 2


Formula = Callable[..., Flops]
"""formula(*args, out_shape, **kwargs) of an op's arguments and output, with shapes in the place of tensors."""

FORMULAS: dict[Any, Formula] = {}  # of this package's ops, by torch.ops.zigma_pl.NAME

SIGMOID = 4  # 1 / (1 + exp(-x))
SILU, SILU_BACKWARD = 4, 9  # x / (1 + exp(-x)); s = sigmoid(x) again (4), s (1 + x (1 - s)) dy
SOFTPLUS = 2  # log1p(exp(x))


def counts_operations_of(*ops: Any) -> Callable[[Formula], Formula]:
    """Register a formula for ops, here by kind and with PyTorch's FlopCounterMode as a total."""

    def register(formula: Formula) -> Formula:
        FORMULAS.update(dict.fromkeys(ops, formula))
        register_flop_formula(ops)(lambda *args, **kwargs: formula(*args, **kwargs).total)
        return formula

    return register
