"""Depthwise causal convolution along a visit order: the public op, its reference, CPU and causal-conv1d backends."""

import functools
import importlib
import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from zigma_pl.core.autocast import without_autocast
from zigma_pl.core.errors import UserError
from zigma_pl.ops import causal_conv1d_cuda
from zigma_pl.ops.backends import Backend, BackendStatus, BackendTable, relative_errors
from zigma_pl.ops.operations import SILU, SILU_BACKWARD, Flops, counts_operations_of
from zigma_pl.ops.rows import (
    RowMover,
    check_32_bit_offsets,
    check_rows,
    check_tensor,
    check_visit_order,
    compute_dtype,
    inverse_order,
)
from zigma_pl.ops.threads import threads_that_pay

__all__ = ["ConvolutionBackend", "available_backends", "causal_conv1d", "self_check"]

Activation = Literal["silu"] | None
ConvolutionBackend = Literal["auto", "cuda", "causal_conv1d", "cpu", "reference"]

# Number of elements that are processed together, so that all passes over them stay in the cache.
BLOCK_ELEMENTS = 1 << 18


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    visit_order: Tensor | None = None,
    activation: Activation = "silu",
    backend: ConvolutionBackend = "auto",
    deterministic: bool = False,
) -> Tensor:
    """Convolve each channel with its own short causal filter along a visit order; rows stay in raster order.

    out[order[k]] = act(bias + sum over j of weight[:, j] x[order[k - (K - 1) + j]]), rows before the first are zero.

    Args:
        x: (B, L, E).
        weight: (E, K); the last column multiplies the token itself.
        bias: (E,).
        visit_order: (L,) int32 or int64 permutation, None for raster order. Only its length and dtype are checked.
        activation: "silu" or None.
        backend: implementation to use; "auto" chooses the fastest available one for x's device and logs the choice.
        deterministic: reject backends whose gradients may differ from run to run.

    Returns:
        (B, L, E) in x's dtype, in raster order.

    Raises:
        UserError: shapes, dtypes or devices do not match, the activation or the backend does not exist, or the backend
            is not deterministic.
        BackendUnavailable: a named backend cannot run here.
    """
    _check(x, weight, bias, activation)
    if visit_order is not None:
        check_visit_order("causal_conv1d", visit_order, x.shape[1], x.device)
    name = _choose_backend(backend, x.device.type)
    if name == "causal_conv1d" and deterministic:
        raise UserError("causal_conv1d: backend 'causal_conv1d' is not deterministic; use backend 'cuda' or 'cpu'")
    return _RUNS[name](x, weight, bias, visit_order, activation)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> None:
    check_rows("causal_conv1d", "x", x)
    num_taps = weight.shape[-1] if weight.ndim else 0
    check_tensor("causal_conv1d", "weight", weight, (x.shape[2], max(num_taps, 1)), "(E, K)", x.device)
    if bias is not None:
        check_tensor("causal_conv1d", "bias", bias, (x.shape[2],), "(E,)", x.device)
    if activation not in ("silu", None):
        raise UserError(f"causal_conv1d: activation {activation!r} does not exist; choose 'silu' or None")


def available_backends() -> dict[str, BackendStatus]:
    """Return the availability of each backend on this machine."""
    return BACKENDS.statuses()


def self_check(name: ConvolutionBackend) -> float:
    """Run one backend on a small case and return its largest relative error; see `selective_scan.self_check`."""
    device = BACKENDS[name].self_check_device()
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (3, 67, 24), "weight": (24, 4), "bias": (24,)}
    arguments = {n: torch.randn(*shape, generator=generator).to(device) for n, shape in shapes.items()}
    visit_order = torch.randperm(67, generator=generator).int().to(device)
    run = functools.partial(causal_conv1d, backend=name)
    exact = functools.partial(causal_conv1d, backend="reference")
    return max(relative_errors(run, exact, arguments, visit_order=visit_order).values())


# ------------------------------------------------------------------------------------------------------- reference
def _run_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, visit_order: Tensor | None, activation: Activation
) -> Tensor:
    """Gather, PyTorch's grouped convolution, scatter; in float64 for float64 x."""
    dtype, (num_channels, num_taps) = compute_dtype(x), weight.shape
    arranged = x.to(dtype) if visit_order is None else x.to(dtype)[:, visit_order.long()]
    padded = F.pad(arranged.transpose(1, 2), (num_taps - 1, 0))
    filters, bias = weight.to(dtype)[:, None], None if bias is None else bias.to(dtype)
    with without_autocast(x.device):
        out = F.conv1d(padded, filters, bias, groups=num_channels)
    out = (F.silu(out) if activation == "silu" else out).transpose(1, 2)
    return (out if visit_order is None else out[:, inverse_order(visit_order)]).to(x.dtype)


# ------------------------------------------------------------------------------------------------------------- CPU
def _run_cpu(
    x: Tensor, weight: Tensor, bias: Tensor | None, visit_order: Tensor | None, activation: Activation
) -> Tensor:
    return conv_forward(x, weight, bias, visit_order, activation == "silu")


def _blocks(x: Tensor) -> Iterator[slice]:
    num_rows, num_tokens, num_channels = x.shape
    size = max(1, min(num_rows, BLOCK_ELEMENTS // (num_tokens * num_channels)))
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def _shifted(rows: Tensor, taps: Tensor, bias: Tensor | None) -> Tensor:
    """Return the sum over s of taps[s] rows[k - s] for time-major rows (L, B, E) and taps (K, E)."""
    out = rows * taps[0] if bias is None else torch.addcmul(bias, rows, taps[0])
    for shift in range(1, min(len(taps), len(rows))):
        out[shift:].addcmul_(rows[:-shift], taps[shift])
    return out


@torch.library.custom_op("zigma_pl::causal_conv1d_cpu", mutates_args=())
@threads_that_pay()
def conv_forward(x: Tensor, weight: Tensor, bias: Tensor | None, visit_order: Tensor | None, silu: bool) -> Tensor:
    """Convolve with K shifted multiply-adds over time-major rows in visit order; plain PyTorch on any device."""
    dtype = compute_dtype(x)
    taps = weight.to(dtype).flip(1).t().contiguous()
    offset = None if bias is None else bias.to(dtype)
    rows, out = RowMover(visit_order), x.new_empty(x.shape, dtype=dtype)
    for block in _blocks(x):
        convolved = _shifted(rows.gather(x[block].to(dtype)), taps, offset)
        rows.scatter(F.silu(convolved, inplace=True) if silu else convolved, out=out[block])
    return out.to(x.dtype)


@conv_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, visit_order: Tensor | None, silu: bool) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("zigma_pl::causal_conv1d_cpu_backward", mutates_args=())
@threads_that_pay()
def conv_backward(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, visit_order: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias, the last one empty without bias."""
    dtype = compute_dtype(x)
    taps = weight.to(dtype).flip(1).t().contiguous()
    offset = None if bias is None else bias.to(dtype)
    rows, dx = RowMover(visit_order), x.new_empty(x.shape, dtype=dtype)
    dtaps, dbias = torch.zeros_like(taps), taps.new_zeros(0 if bias is None else len(bias))
    for block in _blocks(x):
        arranged, dpre = rows.gather(x[block].to(dtype)), rows.gather(dout[block].to(dtype))
        if silu:
            dpre = torch.ops.aten.silu_backward(dpre, _shifted(arranged, taps, offset))
        if offset is not None:
            dbias += dpre.sum((0, 1))
        rows.scatter(_block_backward(arranged, dpre, taps, dtaps), out=dx[block])
    return dx.to(x.dtype), dtaps.t().flip(1).to(weight.dtype).contiguous(), dbias.to(weight if bias is None else bias)


def _block_backward(rows: Tensor, dpre: Tensor, taps: Tensor, dtaps: Tensor) -> Tensor:
    """Return the gradient of the time-major rows, and add the gradient of the taps to `dtaps`."""
    drows, product = dpre * taps[0], torch.empty_like(rows)
    for shift in range(min(len(taps), len(rows))):
        num_steps = len(rows) - shift
        if shift:
            drows[:num_steps].addcmul_(dpre[shift:], taps[shift])
        dtaps[shift] += torch.mul(dpre[shift:], rows[:num_steps], out=product[:num_steps]).sum((0, 1))
    return drows


@conv_backward.register_fake
def _(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, visit_order: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dbias = weight.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), dbias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # read once: under activation checkpointing a second reading is an error
    dx, dweight, dbias = conv_backward(dout, *saved, ctx.silu)
    return dx, dweight, None if saved[2] is None else dbias, None, None


conv_forward.register_autograd(_backward, setup_context=_setup_context)


# ------------------------------------------------------------------------------------------------------ operations
@counts_operations_of(torch.ops.zigma_pl.causal_conv1d_cpu, torch.ops.zigma_pl.causal_conv1d_cuda)
def _operations(x: Any, weight: Any, bias: Any, visit_order: Any, silu: bool, **_: Any) -> Flops:
    num_elements = math.prod(x)
    elementwise = num_elements * ((bias is not None) + SILU * silu)
    return Flops(convolution=2 * weight[1] * num_elements, elementwise=elementwise)


@counts_operations_of(torch.ops.zigma_pl.causal_conv1d_cpu_backward, torch.ops.zigma_pl.causal_conv1d_cuda_backward)
def _backward_operations(dout: Any, x: Any, weight: Any, bias: Any, visit_order: Any, silu: bool, **_: Any) -> Flops:
    """Count dx, dweight, and the recomputed convolution for the derivative of silu."""
    num_elements = math.prod(x)
    elementwise = num_elements * ((bias is not None) * (1 + silu) + SILU_BACKWARD * silu)
    return Flops(convolution=(2 + silu) * 2 * weight[1] * num_elements, elementwise=elementwise)


# ------------------------------------------------------------------------------------- the package causal-conv1d (CUDA)
def _package_available() -> tuple[bool, str]:
    try:
        importlib.import_module("causal_conv1d.causal_conv1d_interface")
    except ImportError as error:
        return False, f"causal-conv1d cannot be imported ({error}); pip install 'zigma-pl[cuda]' on a machine with nvcc"
    if not torch.cuda.is_available():
        return False, "PyTorch sees no CUDA device"
    return True, "causal-conv1d's CUDA kernel, with a gather before and a scatter after it"


def _run_package(
    x: Tensor, weight: Tensor, bias: Tensor | None, visit_order: Tensor | None, activation: Activation
) -> Tensor:
    if x.dtype == torch.float64 or not 2 <= weight.shape[1] <= 4:
        raise UserError(
            f"causal_conv1d: backend 'causal_conv1d' takes 2 to 4 taps and no float64, got {weight.shape[1]} taps "
            f"and {x.dtype}; use backend 'cpu', which runs on CUDA too"
        )
    interface = importlib.import_module("causal_conv1d.causal_conv1d_interface")
    arranged = (x if visit_order is None else x.index_select(1, visit_order)).transpose(1, 2)
    if x.shape[2] % 8:  # the channel-last kernel requires a multiple of 8 channels
        arranged = arranged.contiguous()
    check_32_bit_offsets("causal_conv1d", "causal_conv1d", arranged)
    parameters = (weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    out = interface.causal_conv1d_fn(arranged, *parameters, activation=activation).transpose(1, 2)
    return out.contiguous() if visit_order is None else out.index_select(1, inverse_order(visit_order))


BACKENDS = BackendTable(
    "causal_conv1d",
    (
        Backend("cuda", causal_conv1d_cuda.run, causal_conv1d_cuda.available, ("cuda",)),
        Backend("causal_conv1d", _run_package, _package_available, ("cuda",)),
        Backend("cpu", _run_cpu, lambda: (True, "shifted multiply-adds in PyTorch, optimised for the CPU")),
        Backend("reference", _run_reference, lambda: (True, "PyTorch's grouped convolution, the reference")),
    ),
)
_RUNS = {backend.name: backend.run for backend in BACKENDS.backends}


# The choice depends only on the machine, and torch.compile cannot trace imports of packages.
@torch.compiler.assume_constant_result
def _choose_backend(name: str, device_type: str) -> str:
    return BACKENDS.choose(name, device_type).name
