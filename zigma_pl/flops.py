"""How many arithmetic operations a backbone takes, counted op by op without computing anything.

A multiply-add counts as 2, any other operation or elementary function (division, maximum, exp, tanh, rsqrt) as 1, and
moving, copying or looking up as 0. So linear layers, attention and U-ViT's convolution come out as in PyTorch's
FlopCounterMode, which counts nothing else.

Axes: B batch, L tokens, E inner width, N state.
"""

from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import zigma_pl.ops.causal_conv1d
import zigma_pl.ops.selective_scan  # noqa: F401  both register the ops that are named below
from zigma_pl.backbones.base import Backbone
from zigma_pl.errors import UserError

NUM_CAPTION_TOKENS = 77  # as CLIP's text encoder gives
# They change where and how often something is computed, not what has to be computed; the meta device has no other scan.
_PLAIN_OPTIONS: dict[str, Any] = {"scan_backend": "cpu", "gradient_checkpointing": False}


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

    @property
    def total(self) -> int:
        """All of them."""
        return sum(astuple(self))

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of products, attention and convolutions: what many papers, DiT's among them, call FLOPs."""
        return (self.matrix_products + self.attention + self.convolution) // 2


def count_flops(
    backbone: Backbone, batch_size: int = 1, *, num_caption_tokens: int = NUM_CAPTION_TOKENS, backward: bool = False
) -> Flops:
    """Count one call of a backbone in any size, on any machine: it is built again, without memory, from its config.

    Args:
        backbone: what to count; with its class or caption as condition, if it takes one.
        batch_size: B.
        num_caption_tokens: T of the captions.
        backward: count the backward pass as well, to the gradients of all parameters. What the scan and the causal
            convolution compute a second time in it counts; what gradient checkpointing or `activation_memory` repeat
            does not.

    Raises: UserError when the backbone runs an op whose arithmetic is not known.
    """
    plain = {name: value for name, value in _PLAIN_OPTIONS.items() if name in backbone.config}
    # In inference mode PyTorch would not say what ops such as a linear layer are made of.
    with torch.inference_mode(False), torch.set_grad_enabled(backward):
        with torch.device("meta"):
            outline = type(backbone).from_config(backbone.config | plain)
            x_t, t = torch.empty(batch_size, *backbone.latent_shape), torch.empty(batch_size)
            condition = _condition(backbone, batch_size, num_caption_tokens)
        # The form of attention that is made of products and a softmax; others hide them, and not every device has them.
        with sdpa_kernel(SDPBackend.MATH), _Counter() as counter:
            prediction = outline(x_t, t, condition)
            if backward:
                parameters = list(outline.parameters())
                torch.autograd.grad(prediction, parameters, torch.empty_like(prediction), allow_unused=True)
    return counter.flops


def _condition(backbone: Backbone, batch_size: int, num_caption_tokens: int) -> Tensor | None:
    if backbone.num_classes is not None:
        return torch.empty(batch_size, dtype=torch.int64)
    if backbone.caption_dim is not None:
        return torch.empty(batch_size, num_caption_tokens, backbone.caption_dim)
    return None


class _Counter(TorchDispatchMode):
    """Adds up what every op takes that runs while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = Flops()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        op = func.overloadpacket
        if op in _FORMULAS:
            self.flops += _FORMULAS[op](args, kwargs or {}, out)
        elif op not in _NO_ARITHMETIC:
            raise UserError(f"count_flops: the arithmetic of {op} is not known; add it to the tables of {__name__}")
        return out


# ---------------------------------------------------------------------------------------------------------- our ops
@dataclass(frozen=True)
class StateUpdate:
    """What the scan computes for each token, channel and state in one pass (Mamba, arXiv:2312.00752, Eq. 2).

    Often 9 operations are counted instead, for the forward pass as a parallel, associative scan.
    """

    exponentials: int
    multiplications: int
    multiply_adds: int

    @property
    def instructions(self) -> int:
        """On the multiply-add units, which take a multiplication alone as long."""
        return self.multiplications + self.multiply_adds

    @property
    def flops(self) -> int:
        """Arithmetic operations."""
        return self.exponentials + self.multiplications + 2 * self.multiply_adds


# delta A, exp, (delta u) B, decay h + that, y + C h.
STATE_UPDATE = StateUpdate(exponentials=1, multiplications=2, multiply_adds=2)
# All of that but C h again; the adjoint dh + C dy and what it passes on, decay dh (a multiply-add, a multiplication);
# dC, dB and d(delta u) (3 multiply-adds); d(delta A) = dh decay h (2 multiplications), its parts in ddelta and dA (2).
STATE_UPDATE_BACKWARD = StateUpdate(exponentials=1, multiplications=2 + 1 + 2, multiply_adds=1 + 1 + 3 + 2)

SILU, SILU_BACKWARD = 4, 9  # x / (1 + exp(-x)); s = sigmoid(x) again (4), s (1 + x (1 - s)) dy
SOFTPLUS = 2  # log1p(exp(x))


def _scan(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> Flops:
    u, _, A, _, _, skip, gate, delta_bias = args[:8]
    each_channel = 1  # delta u
    each_channel += 2 * (skip is not None) + (SILU + 1) * (gate is not None) + (1 + SOFTPLUS) * (delta_bias is not None)
    return Flops(scan=u.numel() * (STATE_UPDATE.flops * A.shape[1] + each_channel))


def _scan_backward(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> Flops:
    u, _, A, _, _, skip, gate, delta_bias = args[1:9]
    each_channel = 1 + 3  # delta u again; d(delta u) times delta and times u, the latter added to ddelta
    each_channel += 4 * (skip is not None)  # its parts in du and dskip
    each_channel += (SILU_BACKWARD + 4) * (gate is not None)  # dgate = dout y silu', dy = dout silu(gate) from s above
    each_channel += (1 + SOFTPLUS + 5) * (delta_bias is not None)  # again; (1 - exp(-delta)) ddelta, and its sum
    return Flops(scan=u.numel() * (STATE_UPDATE_BACKWARD.flops * A.shape[1] + each_channel))


def _causal_convolution(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> Flops:
    x, weight, bias, _, silu = args
    taps = 2 * weight.shape[1] * x.numel()
    return Flops(convolution=taps, elementwise=x.numel() * ((bias is not None) + SILU * silu))


def _causal_convolution_backward(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> Flops:
    _, x, weight, bias, _, silu = args
    taps = 2 * weight.shape[1] * x.numel()
    # dx and dweight; for the derivative of silu the convolution again.
    return Flops(
        convolution=(2 + silu) * taps,
        elementwise=x.numel() * ((bias is not None) * (1 + silu) + SILU_BACKWARD * silu),
    )


# ---------------------------------------------------------------------------------------------------- PyTorch's ops
Formula = Callable[[tuple[Any, ...], Mapping[str, Any], Any], Flops]
aten = torch.ops.aten


def _of_kind(kind: str, op: Any) -> Formula:
    """Return PyTorch's own formula, which leaves out the bias, as of this kind."""
    return lambda args, kwargs, out: Flops(**{kind: flop_registry[op](*args, **kwargs, out_val=out)})


def _biased(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Tensor) -> Flops:
    return _of_kind("matrix_products", aten.addmm)(args, kwargs, out) + Flops(elementwise=out.numel())


def _convolution(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Tensor) -> Flops:
    bias = Flops(elementwise=0 if args[2] is None else out.numel())
    return _of_kind("convolution", aten.convolution)(args, kwargs, out) + bias


def _convolution_backward(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> Flops:
    bias = Flops(elementwise=args[0].numel() if args[10][2] else 0)
    return _of_kind("convolution", aten.convolution_backward)(args, kwargs, out) + bias


def _each_output(operations: int) -> Formula:
    return lambda args, kwargs, out: Flops(elementwise=operations * out.numel())


def _each_input(operations: int) -> Formula:
    return lambda args, kwargs, out: Flops(elementwise=operations * args[0].numel())


def _layer_norm(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> Flops:
    x, _, weight, bias, _ = args
    # Mean; difference, its square and their sum; quotient.
    return Flops(elementwise=x.numel() * (5 + (weight is not None) + (bias is not None)))


def _layer_norm_backward(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> Flops:
    # xhat again (2); means of dy and of dy xhat (3); rstd (dy - mean - xhat mean) (4).
    weight, bias = args[5:7]
    return Flops(elementwise=args[1].numel() * (9 + 3 * (weight is not None) + (bias is not None)))


_FORMULAS: dict[Any, Formula] = {
    torch.ops.zigma_pl.selective_scan_cpu: _scan,
    torch.ops.zigma_pl.selective_scan_cpu_backward: _scan_backward,
    torch.ops.zigma_pl.causal_conv1d_cpu: _causal_convolution,
    torch.ops.zigma_pl.causal_conv1d_cpu_backward: _causal_convolution_backward,
    aten.mm: _of_kind("matrix_products", aten.mm),
    aten.addmm: _biased,
    aten.bmm: _of_kind("attention", aten.bmm),
    aten.convolution: _convolution,
    aten.convolution_backward: _convolution_backward,
    aten.native_layer_norm: _layer_norm,
    aten.native_layer_norm_backward: _layer_norm_backward,
    aten._safe_softmax: _each_input(5),  # maximum, difference, exp, sum, quotient
    aten._softmax_backward_data: _each_input(4),  # y (dy - sum(y dy))
    aten.silu: _each_output(SILU),
    aten.silu_backward: _each_output(SILU_BACKWARD),
    # x (1 + tanh(c (x + a x^3))) / 2; that of its derivative, with the tanh again.
    aten.gelu: _each_output(9),
    aten.gelu_backward: _each_output(18),
    aten.softplus: _each_output(SOFTPLUS),
    aten.addcmul: _each_output(2),
    **dict.fromkeys((aten.add, aten.add_, aten.mul, aten.div, aten.neg, aten.pow), _each_output(1)),
    **dict.fromkeys((aten.exp, aten.cos, aten.sin, aten.rsqrt), _each_output(1)),
    **dict.fromkeys((aten.sum, aten.mean, aten.embedding_dense_backward), _each_input(1)),
}
_NO_ARITHMETIC = {
    *(aten.view, aten._unsafe_view, aten.permute, aten.t, aten.transpose, aten.expand, aten.squeeze, aten.unsqueeze),
    *(aten.split, aten.split_with_sizes, aten.unbind, aten.slice, aten.select, aten.cat, aten.stack, aten.detach),
    *(aten.clone, aten.copy_, aten._to_copy, aten.embedding, aten.slice_backward),
    *(aten.ones, aten.empty_like, aten.new_empty_strided, aten.new_zeros),
}
