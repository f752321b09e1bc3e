"""FLOP counts of backbones, op by op, on the meta device.

PyTorch's FlopCounterMode does the counting, with additional formulas: those of this package's ops are next to the ops
(`zigma_pl.ops.operations`), those of PyTorch's elementwise ops are here. Linear layers, attention and U-ViT's
convolution are counted as by FlopCounterMode itself, which ignores all other ops.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import zigma_pl.ops.causal_conv1d
import zigma_pl.ops.selective_scan.operations
import zigma_pl.ops.ssd.operations  # noqa: F401  all three register the formulas of their ops
from zigma_pl.core.batch import Condition, Conditions
from zigma_pl.core.class_paths import packages_named
from zigma_pl.core.errors import UserError
from zigma_pl.core.torch_private import TorchDispatchMode
from zigma_pl.models.backbones.base import Backbone
from zigma_pl.models.conditioners import CaptionConditioner
from zigma_pl.ops.operations import FORMULAS, SIGMOID, SILU, SILU_BACKWARD, SOFTPLUS, Flops, Formula

NUM_CAPTION_TOKENS = 77  # of CLIP's text encoder
# Options that affect how a backbone is run but not its arithmetic. Only this scan backend runs on the meta device.
_PLAIN_OPTIONS: dict[str, Any] = {"scan_backend": "cpu", "gradient_checkpointing": False}


def count_flops(
    backbone: Backbone, batch_size: int = 1, *, num_caption_tokens: int = NUM_CAPTION_TOKENS, backward: bool = False
) -> Flops:
    """Count the operations of one call of a backbone, with a copy of it on the meta device.

    Args:
        backbone: the backbone, which is called with all its conditions.
        batch_size: B.
        num_caption_tokens: T, tokens of the captions.
        backward: also count the backward pass, for the gradients of all parameters. It includes what the scan and the
            causal convolution recompute, but not what gradient checkpointing or `activation_memory` recompute.

    Raises: UserError if the backbone runs an op for which there is no formula.
    """
    # In inference mode PyTorch would not decompose ops such as linear layers.
    with torch.inference_mode(False), torch.set_grad_enabled(backward):
        with torch.device("meta"):
            outline = type(backbone).from_config(_plain(backbone.config), tuple(packages_named(backbone.config)))
            x_t, t = torch.empty(batch_size, *backbone.latent_shape), torch.empty(batch_size)
            conditions = _conditions(backbone, batch_size, num_caption_tokens)
        with counting() as counter:
            prediction = outline(x_t, t, conditions)
            if backward:
                parameters = list(outline.parameters())
                torch.autograd.grad(prediction, parameters, torch.empty_like(prediction), allow_unused=True)
    return operations_of(counter)


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Count the operations that run in the block by kind; an op without a formula raises UserError."""
    counter = FlopCounterMode(display=False, custom_mapping=_TORCH_FORMULAS | FORMULAS)
    # The math backend runs attention as products and a softmax, which can be counted, and exists on all devices.
    with sdpa_kernel(SDPBackend.MATH), _KnownOps(), counter:  # the counter decomposes composite ops first
        yield counter


def operations_of(counter: FlopCounterMode) -> Flops:
    """Return the operations counted by a counter from `counting`."""
    by_op: Mapping[Any, Any] = counter.get_flop_counts().get("Global", {})
    return sum(by_op.values(), Flops())


def _plain(options: Any) -> Any:
    """Return options, including nested ones such as those of mixers, with the values of _PLAIN_OPTIONS."""
    if isinstance(options, list):
        return [_plain(entry) for entry in options]
    if not isinstance(options, Mapping):
        return options
    return {name: _PLAIN_OPTIONS[name] if name in _PLAIN_OPTIONS else _plain(o) for name, o in options.items()}


def _conditions(backbone: Backbone, batch_size: int, num_caption_tokens: int) -> Conditions:
    conditions = {}
    for name, conditioner in backbone.conditioners.items():
        if isinstance(conditioner, CaptionConditioner):
            conditions[name] = Condition(torch.empty(batch_size, num_caption_tokens, conditioner.caption_dim))
        else:
            conditions[name] = conditioner.placeholder(batch_size, torch.device("meta"))  # type: ignore[operator]
    return conditions


class _KnownOps(TorchDispatchMode):
    """Raises UserError for ops without a formula, which FlopCounterMode would ignore."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        op = func.overloadpacket
        if not (op in FORMULAS or op in _TORCH_FORMULAS or op in _NO_ARITHMETIC):
            raise UserError(f"count_flops: there is no formula for {op}: add one to the tables of {__name__}")
        return func(*args, **(kwargs or {}))


# ---------------------------------------------------------------------------------------------------- PyTorch's ops
aten = torch.ops.aten


def _of_kind(kind: str, op: Any) -> Formula:
    """Return PyTorch's formula, which ignores the bias, counted as one kind."""

    def formula(*args: Any, out_shape: Any, **kwargs: Any) -> Flops:
        return Flops(**{kind: flop_registry[op](*args, out_val=out_shape, **kwargs)})

    return formula


def _biased(*args: Any, out_shape: Any, **kwargs: Any) -> Flops:
    products = _of_kind("matrix_products", aten.addmm)(*args, out_shape=out_shape, **kwargs)
    return products + Flops(elementwise=math.prod(out_shape))


def _convolution(*args: Any, out_shape: Any, **kwargs: Any) -> Flops:
    taps = _of_kind("convolution", aten.convolution)(*args, out_shape=out_shape, **kwargs)
    return taps + Flops(elementwise=0 if args[2] is None else math.prod(out_shape))


def _convolution_backward(*args: Any, **kwargs: Any) -> Flops:
    taps = _of_kind("convolution", aten.convolution_backward)(*args, **kwargs)
    return taps + Flops(elementwise=math.prod(args[0]) if args[10][2] else 0)


def _each_output(operations: int) -> Formula:
    return lambda *args, out_shape, **kwargs: Flops(elementwise=operations * math.prod(out_shape))


def _each_input(operations: int) -> Formula:
    return lambda *args, **kwargs: Flops(elementwise=operations * math.prod(args[0]))


def _layer_norm(x: Any, shape: Any, weight: Any, bias: Any, epsilon: float, **_: Any) -> Flops:
    # Mean; difference, its square and their sum; quotient.
    return Flops(elementwise=math.prod(x) * (5 + (weight is not None) + (bias is not None)))


def _layer_norm_backward(
    dout: Any, x: Any, shape: Any, mean: Any, rstd: Any, weight: Any, bias: Any, mask: Any, **_: Any
) -> Flops:
    # Recompute xhat (2); means of dy and of dy xhat (3); rstd (dy - mean - xhat mean) (4).
    return Flops(elementwise=math.prod(x) * (9 + 3 * (weight is not None) + (bias is not None)))


_TORCH_FORMULAS: dict[Any, Formula] = {
    aten.mm: _of_kind("matrix_products", aten.mm),
    aten.addmm: _biased,
    aten.bmm: _of_kind("attention", aten.bmm),
    aten.convolution: _convolution,
    aten.convolution_backward: _convolution_backward,
    aten.native_layer_norm: _layer_norm,
    aten.native_layer_norm_backward: _layer_norm_backward,
    **dict.fromkeys((aten._softmax, aten._safe_softmax), _each_input(5)),  # maximum, difference, exp, sum, quotient
    aten._softmax_backward_data: _each_input(4),  # y (dy - sum(y dy))
    aten.silu: _each_output(SILU),
    aten.sigmoid: _each_output(SIGMOID),  # part of SiLU's derivative on the meta device
    aten.silu_backward: _each_output(SILU_BACKWARD),
    # x (1 + tanh(c (x + a x^3))) / 2, and its derivative, which recomputes the tanh.
    aten.gelu: _each_output(9),
    aten.gelu_backward: _each_output(18),
    aten.softplus: _each_output(SOFTPLUS),
    aten.addcmul: _each_output(2),
    **dict.fromkeys(
        (aten.add, aten.sub, aten.rsub, aten.add_, aten.sub_, aten.mul, aten.div, aten.neg, aten.pow), _each_output(1)
    ),
    **dict.fromkeys((aten.exp, aten.log, aten.cos, aten.sin, aten.tanh, aten.sqrt, aten.rsqrt), _each_output(1)),
    **dict.fromkeys(
        (aten.abs, aten.relu, aten.threshold_backward, aten.clamp, aten.maximum, aten.minimum), _each_output(1)
    ),
    **dict.fromkeys((aten.ge, aten.gt, aten.le, aten.lt, aten.eq, aten.ne), _each_output(1)),
    **dict.fromkeys((aten.sum, aten.mean, aten.cumsum, aten.embedding_dense_backward), _each_input(1)),
}
_NO_ARITHMETIC = {
    *(aten.view, aten._unsafe_view, aten.permute, aten.t, aten.transpose, aten.expand, aten.squeeze, aten.unsqueeze),
    *(aten.split, aten.split_with_sizes, aten.unbind, aten.slice, aten.select, aten.cat, aten.stack, aten.detach),
    *(aten.clone, aten.copy_, aten._to_copy, aten.embedding, aten.slice_backward),
    *(aten.ones, aten.fill_, aten.empty_like, aten.new_empty_strided, aten.new_zeros),
    *(aten.arange, aten.constant_pad_nd, aten.where, aten.masked_fill, aten.flip, aten.roll),
    *(aten.index, aten.index_select, aten.gather, aten.scatter, aten.scatter_),
}
