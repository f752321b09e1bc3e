"""Launches of the CUDA scan: conversion of tensors to the kernels' arguments, and the sequence of kernels."""

import functools
from pathlib import Path

import torch
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.ops import nvrtc
from zigma_pl.ops.nvrtc import ROW_KINDS, as_order, as_parameter, num_multiprocessors
from zigma_pl.ops.selective_scan.layout import CHUNK_BLOCKS, Cut, Layout, chunks_for, layout_for, pieces_for

# tiles.cu multiplies row index and element size in 32 bits, and reads row strides as int.
MAX_TOKENS = 2**30 - 1
MAX_ROW_STRIDE = 2**31 - 1
RESULTS = ("states", "carries", "durations", "dBC", "dA", "dskip", "dbias")

_FOLDER = Path(__file__).parent
_COMMON = (_FOLDER.parent / "device.cu", _FOLDER / "tiles.cu")
_NUM_FIELDS = 46  # in struct Params of tiles.cu


class Call:
    """The inputs of one call, converted for the kernels: rows in one dtype with last stride 1, float32 parameters."""

    def __init__(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        skip: Tensor | None,
        gate: Tensor | None,
        delta_bias: Tensor | None,
        visit_order: Tensor | None,
        dout: Tensor | None = None,
        log_A: bool = False,
        restart_every: int = 0,
    ) -> None:
        num_channels, num_states = A.shape
        if u.shape[1] > MAX_TOKENS:
            raise UserError(
                f"selective_scan: backend 'cuda' supports up to {MAX_TOKENS:,} tokens, got {u.shape[1]:,}; use fewer"
            )
        self.dtype = dtype = row_dtype(u, delta, gate, B, C)
        self.shape = (*u.shape, num_states)  # (B, L, E, N)
        self.device = u.get_device()
        self.layout = layout_for(num_states)
        # Rows of B and C are short, so an aligned copy is faster than reading them element by element.
        given = ((u, False), (delta, False), (gate, False), (dout, False), (B, True), (C, True))
        self.rows = [rows if rows is None else _Rows(rows, dtype, align) for rows, align in given]
        self.A = as_parameter(A)
        self.biased, self.gated, self.log_A = delta_bias is not None, gate is not None, log_A
        self.restart_every = restart_every
        bias, order = as_parameter(delta_bias), as_order(visit_order)
        self._parameters = (self.A, as_parameter(skip), bias, order)
        # Whether 8 channels, and 16 bytes of B and C, can always be moved by one load or store.
        widths = num_channels * 2 % 16 == 0 and num_states * dtype.itemsize % 16 == 0
        self.aligned = widths and all(rows is None or rows.aligned for rows in self.rows)

    def fields(self, results: dict[str, Tensor | None], cut: Cut, deterministic: bool) -> list[int]:
        """Return the fields of the kernels' struct Params."""
        fields: list[int] = []
        strides: list[int] = []
        for rows in self.rows:
            fields.append(0 if rows is None else rows.address)
            strides += (0, 0) if rows is None else rows.strides
        fields += strides
        dgate = results.get("dgate")
        fields += [0 if t is None else t.data_ptr() for t in self._parameters]
        fields += [_address(results, name) for name in ("out", "du", "ddelta", "dgate")]
        fields += (0, 0) if dgate is None else dgate.stride()[:2]
        fields += [_address(results, name) for name in RESULTS]
        part_stride, num_tiles = self.shape[2] * (self.shape[3] + 2), self.layout.num_tiles(self.shape[1])
        fields += (part_stride, *self.shape, num_tiles, *cut, deterministic, self.restart_every)
        return fields


class _Rows:
    """Address and strides of rows for a kernel, and whether each row starts at a multiple of 16 bytes.

    Args:
        rows: (B, L, X).
        dtype: dtype to which they are converted.
        align: copy rows that are not aligned.
    """

    __slots__ = ("address", "aligned", "strides", "tensor")

    def __init__(self, rows: Tensor, dtype: torch.dtype, align: bool) -> None:
        if rows.dtype is not dtype:
            rows = rows.to(dtype)
        stride = rows.stride()
        if (stride[2] != 1 and rows.shape[2] != 1) or stride[1] > MAX_ROW_STRIDE:
            rows = rows.contiguous()
        self.aligned = aligned(rows)
        if align and not self.aligned:
            rows = rows.contiguous()
            self.aligned = aligned(rows)
        self.tensor = rows  # kept alive
        self.address, self.strides = rows.data_ptr(), rows.stride()[:2]


def row_dtype(u: Tensor, *others: Tensor | None) -> torch.dtype:
    """Return the dtype of rows in the kernels: u's dtype if all are equal, otherwise float32.

    Different dtypes are rare, and rounding a float32 delta to u's bfloat16 would lose precision.
    """
    dtype = u.dtype
    for other in others:
        if other is not None and other.dtype is not dtype:
            return torch.float32
    return dtype


def aligned(rows: Tensor) -> bool:
    """Return whether every row of (B, L, X) starts at a multiple of 16 bytes."""
    size = rows.element_size()
    batch, row, _ = rows.stride()
    if not (rows.data_ptr() | batch * size | row * size) & 15:
        return True
    num_batch, num_rows, _ = rows.shape  # the stride of an axis of length 1 is never used
    used = rows.data_ptr() | (batch * size if num_batch > 1 else 0) | (row * size if num_rows > 1 else 0)
    return not used & 15


def _address(results: dict[str, Tensor | None], name: str) -> int:
    tensor = results.get(name)
    return 0 if tensor is None else tensor.data_ptr()


@functools.cache
def kernel(
    name: str,
    layout: Layout,
    row_kind: int,
    aligned: bool,
    gated: bool,
    biased: bool,
    log_A: bool,
    restarts: bool,
    keep: int,
    device: int,
) -> nvrtc.Kernel:
    """Load a kernel of forward.cu, backward.cu or chunks.cu for one combination of options."""
    row_bytes, of_chunks = 4 if row_kind == 0 else 2, name.startswith("scan_chunk")
    shared_bytes = (
        layout.chunk_bytes(row_bytes) if of_chunks else layout.shared_bytes(row_bytes, name == "scan_backward")
    )
    options = {
        "ROW_KIND": row_kind,
        "STATES": layout.states,
        "WARPS": layout.warps,
        "TILE": layout.tile,
        "STEPS": layout.steps,
        "ALIGNED": int(aligned),
        "GATED": int(gated),
        "BIASED": int(biased),
        "LOG_A": int(log_A),
        "RESTARTS": int(restarts),
        "KEEPING": int(keep > 0),
        "KEEP": keep or layout.tile,
        "FORWARD_BLOCKS": layout.forward_blocks,
        "BACKWARD_BLOCKS": layout.backward_blocks,
        "CHUNK_BLOCKS": CHUNK_BLOCKS,
    }
    return nvrtc.load(
        (*_COMMON, *_sources(name, row_kind)),
        name,
        tuple(options.items()),
        threads=layout.threads,
        shared_bytes=shared_bytes,
        num_fields=_NUM_FIELDS,
        device=device,
    )


def _sources(name: str, row_kind: int) -> tuple[Path, ...]:
    if name.startswith("scan_chunk"):
        return (_FOLDER / "chunks.cu",)
    kind, products = ("float32", ()) if row_kind == 0 else ("16bit", ("products_16bit.cu",))
    files = {
        "scan_forward": (f"forward_{kind}.cu", "forward.cu"),
        "scan_backward": ("cells.cu", f"reverse_{kind}.cu", "backward.cu"),
    }
    return tuple(_FOLDER / file for file in (*products, *files[name]))


def cut_for(call: Call, backward: bool) -> Cut:
    """Return the division of the sequence for a call on its device."""
    num_rows, num_tokens, num_channels, _ = call.shape
    layout = call.layout
    blocks = -(-num_channels // layout.channels) * num_rows
    resident = layout.backward_blocks if backward else layout.forward_blocks
    available, num_tiles = num_multiprocessors(call.device), layout.num_tiles(num_tokens)
    if call.restart_every:  # the kernels in chunks.cu do not restart
        return Cut(num_tiles, 1, 1)
    chunk_tiles, num_chunks = chunks_for(blocks, num_tiles, available, resident)
    return Cut(chunk_tiles, num_chunks, pieces_for(blocks * layout.chunk_parts, chunk_tiles, num_chunks, available))


def launch(
    call: Call,
    results: dict[str, Tensor | None],
    cut: Cut,
    *,
    backward: bool = False,
    keep: int = 0,
    deterministic: bool = False,
) -> None:
    """Launch the kernels of one pass: the scan, after a kernel that computes the carries between chunks if needed.

    Args:
        call: the inputs.
        results: outputs, by the names in RESULTS; None for outputs that are not needed.
        cut: division of the sequence.
        backward: launch the backward pass instead of the forward pass.
        keep: number of rows between stored states, 0 if none are stored.
        deterministic: whether dBC has a separate part for every block.
    """
    num_rows, _, num_channels, _ = call.shape
    layout, num_chunks, A = call.layout, cut.num_chunks, call.A
    kinds = (layout, ROW_KINDS[call.dtype], call.aligned, call.gated, call.biased, call.log_A, call.restart_every > 0)
    grid = (-(-num_channels // layout.channels), num_rows, num_chunks)
    if num_chunks > 1:
        num_pieces = num_chunks * cut.chunk_pieces
        results["carries"] = A.new_empty(num_pieces, num_rows, num_channels, layout.states)
        results["durations"] = A.new_empty(num_pieces, num_rows, num_channels)
    fields = call.fields(results, cut, deterministic)
    if num_chunks > 1:
        alone = kernel("scan_chunk_adjoints" if backward else "scan_chunk_states", *kinds, 0, call.device)
        alone((num_pieces * layout.chunk_parts, num_rows, grid[0]), fields)
    kernel("scan_backward" if backward else "scan_forward", *kinds, keep, call.device)(grid, fields)
