"""The causal convolution on NVIDIA GPUs: CUDA C++ compiled at run time, with rows addressed through the visit order."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.ops import nvrtc
from zigma_pl.ops.column_sums import sum_of_parts
from zigma_pl.ops.nvrtc import LARGEST_GRID, ROW_KINDS, as_order, as_parameter, num_multiprocessors, rows_of_block

MAX_TAPS = 8

_FOLDER = Path(__file__).parent
_NUM_FIELDS = 19  # in struct Params of causal_conv1d.cu
_MAX_ROW_STRIDE = 2**30 - 1  # whose bytes causal_conv1d.cu counts in 32 bits


class Division(NamedTuple):
    """Division of the work of a kernel among threads.

    vector_bytes: bytes of adjacent channels of a thread.
    threads: threads per block.
    group: rows that are copied together.
    longest_chunk: maximum number of rows per block, which also reads the TAPS - 1 rows before them.
    resident: blocks that a multiprocessor runs at the same time, limited by registers (float32: shared memory).
    arrays: number of arrays of rows that are read.
    """

    vector_bytes: int
    threads: int
    group: int
    longest_chunk: int
    resident: int
    arrays: int


# The fastest on an H200 of those with 8 or 16 bytes, 32 to 128 threads, and groups of 4 or 8 rows. The forward pass is
# fastest with short chunks, the backward pass if all blocks run at the same time.
FORWARD = Division(vector_bytes=16, threads=128, group=8, longest_chunk=32, resident=4, arrays=1)
FORWARD_FEW_ROWS = Division(vector_bytes=8, threads=32, group=4, longest_chunk=128, resident=32, arrays=1)
BACKWARD = Division(vector_bytes=8, threads=32, group=4, longest_chunk=512, resident=20, arrays=2)
BACKWARD_FLOAT32 = BACKWARD._replace(vector_bytes=16, resident=11)
FEW_ROWS = 4096  # of the whole batch; FORWARD would occupy a GPU only in part


def available() -> tuple[bool, str]:
    """Return whether the kernels can run here, with the reason if not."""
    return nvrtc.available()


def run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    visit_order: Tensor | None,
    activation: str | None,
) -> Tensor:
    """Convolve with the arguments of `causal_conv1d`, but without float64 and with at most 8 taps.

    Deterministic, since sums are taken in a fixed order.
    """
    if x.dtype not in ROW_KINDS or weight.shape[1] > MAX_TAPS:
        raise UserError(
            f"causal_conv1d: backend 'cuda' supports up to {MAX_TAPS} taps and no float64, got {weight.shape[1]} taps "
            f"and {x.dtype}; use backend 'cpu', which runs on CUDA too"
        )
    inputs = (x, weight, bias)
    differentiated = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    if not differentiated and nvrtc.runs_eagerly(x):
        return convolve(x, weight, bias, visit_order, activation == "silu")
    return conv_forward(x, weight, bias, visit_order, activation == "silu")


def _rows(rows: Tensor, dtype: torch.dtype) -> Tensor:
    if rows.dtype is not dtype:
        rows = rows.to(dtype)
    _, row, channel = rows.stride()
    return rows if (channel == 1 or rows.shape[2] == 1) and row <= _MAX_ROW_STRIDE else rows.contiguous()


def _vector(rows: list[Tensor], num_bytes: int) -> int:
    """Return how many channels a load or store can move: as many as fit in num_bytes, or 1 if rows are not aligned."""
    size = rows[0].element_size()
    used = rows[0].shape[2] * size
    for t in rows:
        (num_batch, num_rows, _), (batch, row, _) = t.shape, t.stride()
        used |= t.data_ptr() | (batch * size if num_batch > 1 else 0) | (row * size if num_rows > 1 else 0)
    return 1 if used % num_bytes else num_bytes // size


def _forward_division(x: Tensor) -> Division:
    num_rows, num_tokens, _ = x.shape
    fits = num_tokens <= FORWARD.longest_chunk * LARGEST_GRID
    return FORWARD if fits and num_rows * num_tokens > FEW_ROWS else FORWARD_FEW_ROWS


def _chunk_rows(x: Tensor, vector: int, division: Division) -> int:
    """Return the number of rows per chunk: as few as possible if all blocks are to run at the same time, at least 8."""
    num_rows, num_tokens, num_channels = x.shape
    across = num_rows * -(-num_channels // (division.threads * vector))
    room = division.resident * num_multiprocessors(x.device.index or 0)
    return max(8, rows_of_block(num_tokens, max(1, room // across), 4, division.longest_chunk))


@functools.cache
def _kernel(
    name: str, row_kind: int, taps: int, silu: bool, vector: int, division: Division, device: int
) -> nvrtc.Kernel:
    options = {
        "ROW_KIND": row_kind,
        "TAPS": taps,
        "SILU": int(silu),
        "VECTOR": vector,
        "THREADS": division.threads,
        "GROUP": division.group,
    }
    order_bytes = 4 * (division.longest_chunk + 2 * MAX_TAPS + 2 * division.group)
    slot_bytes = vector * (4 if row_kind == 0 else 2)
    return nvrtc.load(
        (_FOLDER / "device.cu", _FOLDER / "causal_conv1d.cu"),
        name,
        tuple(options.items()),
        threads=division.threads,
        shared_bytes=2 * division.arrays * division.group * division.threads * slot_bytes + order_bytes,
        num_fields=_NUM_FIELDS,
        device=device,
    )


def _launch(
    name: str,
    x: Tensor,
    dout: Tensor | None,
    parameters: tuple[Tensor, Tensor | None, Tensor | None, bool],
    outputs: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    division: Division,
    vector: int,
    chunk_rows: int,
    part_stride: int = 0,
) -> None:
    weight, bias, visit_order, silu = parameters
    weight, bias, order = as_parameter(weight), as_parameter(bias), as_order(visit_order)
    num_rows, num_tokens, num_channels = x.shape
    kernel = _kernel(name, ROW_KINDS[x.dtype], weight.shape[1], silu, vector, division, x.device.index or 0)
    dx = outputs[1]
    strides = (stride for t in (x, dout, dx) for stride in ((0, 0) if t is None else t.stride()[:2]))
    kernel(
        (-(-num_channels // (division.threads * vector)), -(-num_tokens // chunk_rows), num_rows),
        (
            *map(_address, (x, dout)),
            *strides,
            *map(_address, (weight, bias, order, *outputs)),
            *(num_tokens, num_channels, chunk_rows, part_stride),
        ),
    )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, visit_order: Tensor | None, silu: bool) -> Tensor:
    """Return the convolved rows, contiguous; without autograd, for callers with their own backward pass."""
    x = _rows(x, x.dtype)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    division, parameters = _forward_division(x), (weight, bias, visit_order, silu)
    vector = _vector([x, out], division.vector_bytes)
    chunk_rows = _chunk_rows(x, vector, division)
    _launch("conv_forward", x, None, parameters, (out, None, None, None), division, vector, chunk_rows)
    return out


def convolve_backward(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    visit_order: Tensor | None,
    silu: bool,
    dx: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, of weight, (E, K), and of bias, (E,), the last two float32 in shared memory.

    Args:
        dout: gradient of the output.
        x, weight, bias, visit_order, silu: the arguments of `convolve`.
        dx: output for the gradient of x, such as half of the gradient of a projection: (B, L, E), last stride 1.
    """
    x, dout = _rows(x, x.dtype), _rows(dout, x.dtype)
    if dx is None:
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    division = BACKWARD_FLOAT32 if x.dtype == torch.float32 else BACKWARD
    vector = _vector([x, dout, dx], division.vector_bytes)
    chunk_rows = _chunk_rows(x, vector, division)
    num_parts = x.shape[0] * -(-x.shape[1] // chunk_rows)
    sizes = [weight.numel(), x.shape[2]]
    parts = torch.empty(num_parts, sum(sizes), dtype=torch.float32, device=x.device)
    outputs = (None, dx, *parts.split(sizes, 1))
    parameters = (weight, bias, visit_order, silu)
    _launch("conv_backward", x, dout, parameters, outputs, division, vector, chunk_rows, sum(sizes))
    dweight, dbias = sum_of_parts(parts, torch.float32).split(sizes)
    return dx, dweight.view(weight.shape), dbias


@torch.library.custom_op("zigma_pl::causal_conv1d_cuda", mutates_args=())
def conv_forward(x: Tensor, weight: Tensor, bias: Tensor | None, visit_order: Tensor | None, silu: bool) -> Tensor:
    """Custom op of `convolve`."""
    return convolve(x, weight, bias, visit_order, silu)


@conv_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, visit_order: Tensor | None, silu: bool) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("zigma_pl::causal_conv1d_cuda_backward", mutates_args=())
def conv_backward(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, visit_order: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Custom op of `convolve_backward`: gradients of x, weight and bias, the last one empty without bias."""
    dx, dweight, dbias = convolve_backward(dout, x, weight, bias, visit_order, silu)
    dbias = weight.new_empty(0) if bias is None else dbias.to(bias.dtype, copy=True)
    return dx, dweight.to(weight.dtype, copy=True), dbias


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
