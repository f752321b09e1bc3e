"""From tensors to launches of the CUDA scan: what its kernels can read as it is, and in which order they run."""

import functools
from pathlib import Path

import torch
from torch import Tensor

from zigma_pl.ops import nvrtc
from zigma_pl.ops.nvrtc import num_multiprocessors
from zigma_pl.ops.selective_scan.layout import Layout, chunks_for, layout_for

ROW_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
ROWS = ("u", "delta", "gate", "dout", "B", "C")
RESULTS = ("out", "du", "ddelta", "dgate", "states", "carries", "durations", "dBC", "dA", "dskip", "dbias")

_FOLDER = Path(__file__).parent
_COMMON = (_FOLDER.parent / "device.cu", _FOLDER / "tiles.cu")
_NUM_FIELDS = 41  # of struct Params in tiles.cu


class Call:
    """The inputs of one call as the kernels take them: rows of one dtype whose last stride is 1, float32 parameters."""

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
    ) -> None:
        self.dtype = row_dtype(u, delta, gate, B, C)
        self.shape = (*u.shape, A.shape[1])  # (B, L, E, N)
        self.device = u.device.index or 0
        self.layout = layout_for(A.shape[1])
        # Rows of B and C are short: a copy costs less than to read them element by element.
        short = (_as_rows(B, self.dtype, align=True), _as_rows(C, self.dtype, align=True))
        self.rows = (*(_as_rows(t, self.dtype) for t in (u, delta, gate, dout)), *short)
        self.A = A.to(torch.float32).contiguous()
        self.skip, self.bias = _as_parameter(skip), _as_parameter(delta_bias)
        self.order = visit_order if visit_order is None else visit_order.to(torch.int32).contiguous()
        # Whether 8 channels, and 16 bytes of B and C, can always be moved at once.
        widths = (u.shape[2] * 2, A.shape[1] * self.dtype.itemsize)
        self.aligned = not any(width % 16 for width in widths) and all(t is None or _aligned(t) for t in self.rows)

    def fields(self, results: dict[str, Tensor | None], cut: tuple[int, int], deterministic: bool) -> tuple[int, ...]:
        """Returns the kernels' struct Params."""
        strides = (stride for t in self.rows for stride in ((0, 0) if t is None else t.stride()[:2]))
        tensors = (self.A, self.skip, self.bias, self.order, *map(results.get, RESULTS))
        num_tiles = self.layout.num_tiles(self.shape[1])
        return (
            *(0 if t is None else t.data_ptr() for t in self.rows),
            *strides,
            *(0 if t is None else t.data_ptr() for t in tensors),
            *(*self.shape, num_tiles, *cut, int(deterministic)),
        )


def row_dtype(u: Tensor, *others: Tensor | None) -> torch.dtype:
    """Returns the dtype in which rows are read and written: u's, or float32 if they differ.

    That is rare, and rounding a float32 delta to u's bfloat16 would lose what the caller kept.
    """
    return u.dtype if all(t is None or t.dtype == u.dtype for t in others) else torch.float32


def _as_rows(rows: Tensor | None, dtype: torch.dtype, align: bool = False) -> Tensor | None:
    if rows is None:
        return None
    rows = rows.to(dtype)
    copy = (rows.stride(2) != 1 and rows.shape[2] != 1) or (align and not _aligned(rows))
    return rows.contiguous() if copy else rows


def _aligned(rows: Tensor) -> bool:
    """Whether every row starts at a multiple of 16 bytes."""
    size = rows.element_size()
    strides = (stride for stride, length in zip(rows.stride()[:2], rows.shape[:2], strict=True) if length > 1)
    return rows.data_ptr() % 16 == 0 and not any(stride * size % 16 for stride in strides)


def _as_parameter(parameter: Tensor | None) -> Tensor | None:
    return parameter if parameter is None else parameter.to(torch.float32).contiguous()


@functools.cache
def kernel(
    name: str, layout: Layout, row_kind: int, aligned: bool, gated: bool, biased: bool, keeping: bool, device: int
) -> nvrtc.Kernel:
    """Returns a kernel of forward.cu or backward.cu for one kind of call."""
    backward = name in ("scan_backward", "scan_chunk_adjoints")  # both chains are in forward.cu
    options = {
        "ROW_KIND": row_kind,
        "STATES": layout.states,
        "WARPS": layout.warps,
        "TILE": layout.tile,
        "STEPS": layout.steps,
        "ALIGNED": int(aligned),
        "GATED": int(gated),
        "BIASED": int(biased),
        "KEEPING": int(keeping),
        "FORWARD_BLOCKS": layout.forward_blocks,
        "BACKWARD_BLOCKS": layout.backward_blocks,
    }
    return nvrtc.load(
        (*_COMMON, _FOLDER / ("backward.cu" if backward else "forward.cu")),
        name,
        tuple(options.items()),
        threads=layout.threads,
        shared_bytes=0 if name.startswith("scan_chain") else layout.shared_bytes(4 if row_kind == 0 else 2, backward),
        num_fields=_NUM_FIELDS,
        device=device,
    )


def chunks(call: Call, backward: bool) -> tuple[int, int]:
    """Returns (tiles in a chunk, number of chunks) for this call on its device."""
    num_rows, num_tokens, num_channels, _ = call.shape
    layout = call.layout
    blocks = -(-num_channels // layout.channels) * num_rows
    resident = layout.backward_blocks if backward else layout.forward_blocks
    return chunks_for(blocks, layout.num_tiles(num_tokens), num_multiprocessors(call.device), resident)


def launch(
    call: Call,
    results: dict[str, Tensor | None],
    cut: tuple[int, int],
    *,
    backward: bool = False,
    deterministic: bool = False,
) -> None:
    """Runs the kernels of one direction: the walk itself, after two that find what enters each chunk if there are many.

    Args:
        call: the inputs.
        results: what is written, by the names in RESULTS; None where nothing is wanted.
        cut: (tiles in a chunk, number of chunks).
        backward: which direction.
        deterministic: whether dBC has a part for every block.
    """
    num_rows, _, num_channels, _ = call.shape
    layout, num_chunks, A = call.layout, cut[1], call.A
    keeping = not backward and results.get("states") is not None
    gated, biased = call.rows[2] is not None, call.bias is not None
    kinds = (layout, ROW_KINDS[call.dtype], call.aligned, gated, biased, keeping, call.device)
    grid = (-(-num_channels // layout.channels), num_rows, num_chunks)
    if num_chunks > 1:
        results["carries"] = A.new_empty(num_chunks, num_rows, num_channels, layout.states)
        results["durations"] = A.new_empty(num_chunks, num_rows, num_channels)
    fields = call.fields(results, cut, deterministic)
    if num_chunks > 1:
        kernel("scan_chunk_adjoints" if backward else "scan_chunk_states", *kinds)(grid, fields)
        threads = num_rows * num_channels * layout.states
        chain = kernel("scan_chain_backward" if backward else "scan_chain_forward", *kinds)
        chain((-(-threads // layout.threads), 1, 1), fields)
    kernel("scan_backward" if backward else "scan_forward", *kinds)(grid, fields)
