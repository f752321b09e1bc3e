"""RMSNorm with a weight on NVIDIA GPUs: CUDA C++ compiled at run time, one pass over the rows in either direction.

Axes: N rows, G groups, W width of a group.
"""

import functools
import struct
from pathlib import Path

import torch
from torch import Tensor

from zigma_pl.ops import nvrtc
from zigma_pl.ops.nvrtc import ROW_KINDS, as_parameter, num_multiprocessors, rows_of_block

MAX_ROW_BYTES = 6144  # of one group, so that the backward pass can keep its values and sums in registers
WARPS = 4
COLUMNS = 32  # per block of rms_norm_backward_sums
# Target number of blocks per multiprocessor, and maximum number of rows per block. Short blocks are fastest in the
# forward pass. Blocks of the backward pass write sums, so there are only as many as can run at the same time.
FORWARD_BLOCKS, FORWARD_LONGEST = 20, 8
BACKWARD_BLOCKS = 4
CARVEOUTS = {"rms_norm_forward": 30, "rms_norm_backward": 50}  # see nvrtc.load

_FOLDER = Path(__file__).parent
_NUM_FIELDS = 13  # in struct Params of rms_norm.cu


def forward(rows: Tensor, weight: Tensor, num_groups: int, epsilon: float, keep: bool) -> tuple[Tensor, Tensor]:
    """Normalise each group of the rows' channels.

    Args:
        rows: (..., G W).
        weight: (G W,), rounded to the dtype of the rows.
        num_groups: G.
        epsilon: added to the mean square.
        keep: return 1 / rms of each group, (N, G) float32, for the backward pass; otherwise an empty tensor.
    """
    rows, weight = _aligned(rows), _aligned(as_parameter(weight))
    out = torch.empty_like(rows)
    num_rows = rows.numel() // rows.shape[-1]
    rstd = torch.empty((num_rows, num_groups) if keep else 0, dtype=torch.float32, device=rows.device)
    tensors = (rows, None, weight, out, None, rstd if keep else None)
    chunk_rows = min(FORWARD_LONGEST, _chunk_rows(rows, num_groups, FORWARD_BLOCKS))
    _launch("rms_norm_forward", rows, num_groups, chunk_rows, tensors, epsilon=epsilon)
    return out, rstd


def backward(dout: Tensor, rows: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the rows and of the weight, the latter in float32.

    Deterministic, since sums are taken in a fixed order.

    Args:
        dout: gradient of the output, (..., G W).
        rows, weight: the arguments of `forward`.
        rstd: 1 / rms of each group, (N, G), from `forward`.
    """
    rows, dout, weight = _aligned(rows), _aligned(dout.to(rows.dtype)), _aligned(as_parameter(weight))
    num_groups = rstd.shape[1]
    chunk_rows = _chunk_rows(rows, num_groups, BACKWARD_BLOCKS)
    num_chunks = -(-len(rstd) // chunk_rows)
    dx = torch.empty_like(rows)
    sums, dweight = (torch.empty(n, weight.numel(), dtype=torch.float32, device=rows.device) for n in (num_chunks, 1))
    tensors = (rows, dout, weight, None, dx, rstd, sums, dweight)
    _launch("rms_norm_backward", rows, num_groups, chunk_rows, tensors)
    _launch("rms_norm_backward_sums", rows, num_groups, chunk_rows, tensors)
    return dx, dweight[0]


def _aligned(tensor: Tensor) -> Tensor:
    """Return a contiguous tensor that starts at a multiple of 16 bytes."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


def _chunk_rows(rows: Tensor, num_groups: int, blocks: int) -> int:
    """Return the number of rows per block."""
    room = blocks * num_multiprocessors(rows.device.index or 0)
    num_rows = rows.numel() // rows.shape[-1]
    return rows_of_block(num_rows, max(1, room // num_groups), WARPS, num_rows + WARPS)


def _launch(
    name: str,
    rows: Tensor,
    num_groups: int,
    chunk_rows: int,
    tensors: tuple[Tensor | None, ...],
    epsilon: float = 0,
) -> None:
    """Launch a kernel with the tensors of struct Params, from x on."""
    width, num_rows = rows.shape[-1], rows.numel() // rows.shape[-1]
    num_chunks = -(-num_rows // chunk_rows)
    kernel = _kernel(name, ROW_KINDS[rows.dtype], width // num_groups, rows.device.index or 0)
    addresses = [0 if t is None else t.data_ptr() for t in tensors] + [0] * (8 - len(tensors))
    sizes = (num_rows, num_groups, chunk_rows, num_chunks, struct.unpack("I", struct.pack("f", epsilon))[0])
    grid = (-(-width // COLUMNS), 1, 1) if name.endswith("sums") else (num_chunks, num_groups, 1)
    kernel(grid, (*addresses, *sizes))


@functools.cache
def _kernel(name: str, row_kind: int, width: int, device: int) -> nvrtc.Kernel:
    options = {"ROW_KIND": row_kind, "WIDTH": width, "WARPS": WARPS, "COLUMNS": COLUMNS}
    floats = {"rms_norm_forward": width, "rms_norm_backward": WARPS * width, "rms_norm_backward_sums": 4 * 32 * WARPS}
    return nvrtc.load(
        (_FOLDER / "device.cu", _FOLDER / "norm_rows.cu", _FOLDER / "rms_norm.cu"),
        name,
        tuple(options.items()),
        threads=32 * WARPS,
        shared_bytes=4 * floats[name],
        num_fields=_NUM_FIELDS,
        device=device,
        carveout=CARVEOUTS.get(name, 100),
    )
