"""Launches of the CUDA kernels of SSD: conversion of tensors to the kernels' arguments, and the sequence of kernels."""

import functools
from pathlib import Path

import torch
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.ops import nvrtc
from zigma_pl.ops.nvrtc import ROW_KINDS, as_order, as_parameter, num_multiprocessors, shared_bytes
from zigma_pl.ops.ssd.layout import (
    BACKWARD_PIECE_CHUNKS,
    FORWARD_PIECE_CHUNKS,
    HEAD_DIMS,
    MAX_STATES,
    Layout,
    carry_parts_for,
    layout_for,
    pieces_for,
)

MAX_ROW_BYTES = 2**31 - 1  # walk.cu reads row strides as int
ROWS = {"dx": -4, "dgate": -4, "ddt": -3}  # results that may be columns of wider rows, and their axes of samples
RESULTS = ("out", *ROWS, "states", "carries", "durations", "dBC", "sums")  # "squares" is at the end of Params

_FOLDER = Path(__file__).parent
_COMMON = (_FOLDER.parent / "device.cu", *(_FOLDER / name for name in ("fragments.cu", "walk.cu", "copies.cu")))
_FORWARD = ("forward.cu",)
_BACKWARD = ("adjoints.cu", "squares.cu", "gradients.cu", "backward.cu")
_NUM_FIELDS = 58  # in struct Params of walk.cu
_MIN_STATES_MULTIPLE = 8  # rows of B and C are read and written by 16 bytes


class Call:
    """The inputs of one call, converted for the kernels: aligned rows in one dtype, float32 parameters.

    Args:
        x, dt, A, B, C, skip, gate, dt_bias, visit_order: see `zigma_pl.ops.ssd.ssd`.
        dout: gradient of the output.
        log_A: A contains log(-A).
    """

    def __init__(
        self,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        skip: Tensor | None,
        gate: Tensor | None,
        dt_bias: Tensor | None,
        visit_order: Tensor | None,
        dout: Tensor | None = None,
        log_A: bool = False,
    ) -> None:
        self.batch_size, self.num_tokens, self.num_heads, self.head_dim = x.shape
        self.num_groups, self.num_states = B.shape[2:]
        self.dtype = row_dtype(x, B, C, gate)
        self.device = x.get_device()
        self.layout = layout_of(self.num_states, self.head_dim, self.dtype, self.device)
        self.rows = [rows if rows is None else aligned(rows, self.dtype) for rows in (x, B, C, gate, dout)]
        self.dt = dt if dt.dtype in ROW_KINDS else dt.float()
        self.order = as_order(visit_order)
        self._parameters = (as_parameter(A), as_parameter(skip), as_parameter(dt_bias))
        self.gated, self.biased, self.log_A = gate is not None, dt_bias is not None, log_A

    @property
    def num_chunks(self) -> int:
        """Chunks of the sequence."""
        return self.layout.num_chunks(self.num_tokens)

    @property
    def parts(self) -> int:
        """Blocks that contribute to one row of dB or dC."""
        return self.num_heads // self.num_groups * self.layout.slices

    def fields(self, results: dict[str, Tensor], piece_chunks: int, carry_parts: int) -> list[int]:
        """Return the fields of the kernels' struct Params."""
        tensors = (*self.rows, self.dt)
        fields = [0 if t is None else t.data_ptr() for t in tensors]
        for tensor in tensors:
            fields += (0, 0, 0) if tensor is None else tensor.stride()[:3]
        fields += [0 if t is None else t.data_ptr() for t in (*self._parameters, self.order)]
        fields.append(self.num_tokens if self.order is not None and self.order.ndim == 2 else 0)
        fields += [results[name].data_ptr() if name in results else 0 for name in RESULTS]
        for name, axis in ROWS.items():  # the stride of an axis of length 1 does not follow from the next one's
            fields += (results[name].stride(axis), results[name].stride(axis + 1)) if name in results else (0, 0)
        parts = results.get("dBC")
        fields += (self.parts, 0 if parts is None or len(parts) == 1 else parts[0].numel())
        fields += (self.batch_size, self.num_tokens, self.num_heads, self.num_groups)
        fields += (self.num_chunks, piece_chunks, carry_parts, int(self.log_A))
        squares = results.get("squares")
        fields += (0, 0, 0, 0) if squares is None else (squares.data_ptr(), *squares.stride())
        return fields


def row_dtype(x: Tensor, *others: Tensor | None) -> torch.dtype:
    """Return the dtype of rows in the kernels: x's dtype if all are equal, otherwise float32."""
    return x.dtype if all(other is None or other.dtype is x.dtype for other in others) else torch.float32


def item_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of tiles and stored states in the kernels, for rows in a dtype."""
    return torch.float32 if dtype is torch.float32 else torch.bfloat16


def aligned(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert rows (B, L, X, Y) to a dtype, and copy them unless each starts at a multiple of 16 bytes."""
    rows = rows.to(dtype)
    stride, size = rows.stride(), rows.element_size()
    steps = [step * size for step, length in zip(stride[:3], rows.shape[:3], strict=True) if length > 1]
    if stride[3] != 1 or stride[1] * size > MAX_ROW_BYTES or any(step % 16 for step in (rows.data_ptr(), *steps)):
        return rows.clone(memory_format=torch.contiguous_format)
    return rows


def supports(num_states: int, head_dim: int) -> bool:
    """Return whether the kernels support these sizes."""
    return head_dim in HEAD_DIMS and num_states <= MAX_STATES and num_states % _MIN_STATES_MULTIPLE == 0


def check_sizes(num_states: int, head_dim: int) -> None:
    """Raise UserError for sizes that the kernels do not support."""
    if supports(num_states, head_dim):
        return
    if head_dim not in HEAD_DIMS:
        raise UserError(f"ssd: backend 'cuda' has heads of {HEAD_DIMS} channels, got {head_dim}; use backend 'cpu'")
    raise UserError(
        f"ssd: backend 'cuda' supports up to {MAX_STATES} states in multiples of {_MIN_STATES_MULTIPLE}, got "
        f"{num_states}; use backend 'cpu'"
    )


def layout_of(num_states: int, head_dim: int, dtype: torch.dtype, device: int) -> Layout:
    """Return the layout for N states, heads of P channels, rows in a dtype, and a CUDA device."""
    return layout_for(num_states, head_dim, 4 if dtype is torch.float32 else 2, shared_bytes(device))


@functools.cache
def kernel(
    name: str,
    layout: Layout,
    row_kind: int,
    dt_kind: int,
    gated: bool,
    biased: bool,
    option: bool,
    squared: bool,
    device: int,
) -> nvrtc.Kernel:
    """Load a kernel of forward.cu or backward.cu for one combination of options.

    Args:
        option: whether the forward pass stores states, or the blocks of the backward pass add to dBC and sums.
        squared: whether the forward pass writes mean squares, or the backward pass reads their gradients.
        name, layout, row_kind, dt_kind, gated, biased, device: which kernel, and for which inputs.
    """
    backward = name.startswith("ssd_backward")
    options = {
        "ROW_KIND": row_kind,
        "DT_KIND": dt_kind,
        "TOKENS": layout.tokens,
        "NUM_STATES": layout.num_states,
        "STATES": layout.states,
        "SLICE": layout.slice,
        "SLICES": layout.slices,
        "GATED": int(gated),
        "BIASED": int(biased),
        "SQUARED": int(squared),
    }
    if backward:
        options |= {"BACKWARD_BYTES": layout.backward_bytes, "BACKWARD_BLOCKS": layout.backward_blocks}
        options |= {"ADDING": int(option)}
    else:
        options |= {"FORWARD_BYTES": layout.forward_bytes, "FORWARD_BLOCKS": layout.forward_blocks}
        options |= {"STAGES": layout.stages, "KEEPING": int(option)}
    return nvrtc.load(
        (*_COMMON, *(_FOLDER / file for file in (_BACKWARD if backward else _FORWARD))),
        name,
        tuple(options.items()),
        threads=layout.threads,
        shared_bytes=layout.backward_bytes if backward else layout.forward_bytes,
        num_fields=_NUM_FIELDS,
        device=device,
    )


def launch(call: Call, results: dict[str, Tensor], *, backward: bool, option: bool) -> None:
    """Launch the kernels of one pass: the walk, after a kernel that computes the state between pieces if needed.

    Args:
        call: the inputs.
        results: outputs, by the names in RESULTS, as far as they are needed.
        backward: launch the backward pass instead of the forward pass.
        option: see `kernel`.
    """
    layout = call.layout
    columns = call.num_heads * layout.slices
    piece_chunks, carry_parts = pieces_of(call, backward)
    num_pieces = -(-call.num_chunks // piece_chunks)
    num_parts = num_pieces * carry_parts
    if num_pieces > 1:
        carries = (num_parts, call.batch_size, columns)
        states = call.dt.new_empty((*carries, layout.states, layout.slice), dtype=item_dtype(call.dtype))
        results = results | {"carries": states, "durations": call.dt.new_empty(carries, dtype=torch.float32)}
    options = (call.gated, call.biased, option, "squares" in results)
    kinds = (layout, ROW_KINDS[call.dtype], ROW_KINDS[call.dt.dtype], *options, call.device)
    name = "ssd_backward" if backward else "ssd_forward"
    if num_pieces > 1:
        part = call.fields(results, piece_chunks // carry_parts, carry_parts)
        kernel(f"{name}_carries", *kinds)((columns, call.batch_size, num_parts), part)
    kernel(name, *kinds)((columns, call.batch_size, num_pieces), call.fields(results, piece_chunks, carry_parts))


def num_pieces_of(call: Call, backward: bool) -> int:
    """Return the number of pieces for a call on its device; none is empty."""
    return -(-call.num_chunks // pieces_of(call, backward)[0])


def pieces_of(call: Call, backward: bool) -> tuple[int, int]:
    """Return the number of chunks in each piece except the last, a multiple of a piece's parts, and that of parts."""
    layout = call.layout
    resident = layout.backward_blocks if backward else layout.forward_blocks
    blocks = call.num_heads * layout.slices * call.batch_size
    least = BACKWARD_PIECE_CHUNKS if backward else FORWARD_PIECE_CHUNKS
    pieces = pieces_for(blocks, call.num_chunks, num_multiprocessors(call.device), resident, least)
    chunks = -(-call.num_chunks // pieces)
    parts = carry_parts_for(pieces, chunks)
    return -(-chunks // parts) * parts, parts
