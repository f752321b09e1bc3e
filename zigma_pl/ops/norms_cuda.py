"""Residual sum, norm and modulation on NVIDIA GPUs: CUDA C++ compiled at run time, one pass over the rows.

Axes: B batch, L tokens, D width.
"""

import functools
import struct
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from zigma_pl.ops import nvrtc
from zigma_pl.ops.nvrtc import ROW_KINDS, as_parameter, num_multiprocessors, rows_of_block

MAX_WIDTH = 2048
WARPS = 4
COLUMNS = 32  # per block of norm_backward_sums
# Target number of blocks per multiprocessor, and maximum number of rows per block. Short blocks are fastest in the
# forward pass. Blocks of the backward pass write sums, so there are only as many as can run at the same time.
FORWARD_BLOCKS, FORWARD_LONGEST = 20, 8
BACKWARD_BLOCKS, BACKWARD_LONGEST = 3, 128
CARVEOUTS = {"norm_forward": 30, "norm_backward": 40}  # see nvrtc.load
RESULTS = (
    *("x_new", "normalised", "out", "rstd", "dout", "dx_new", "dx"),
    *("dbranch", "sums", "dshift", "dscale", "dgate", "dweight"),
)

_FOLDER = Path(__file__).parent
_NUM_FIELDS = 35  # in struct Params of norms.cu


class Modulation(NamedTuple):
    """Weight of the norm, (D,) float32 or None, and modulation of its output: shift and scale, (B, 1, D)."""

    weight: Tensor | None
    shift: Tensor
    scale: Tensor


class Inverses(NamedTuple):
    """Indices of the `branch` and `out` rows for each row of x: (L,) or (B, L), None for raster order.

    They are the inverses of the visit orders of those rows.
    """

    branch: Tensor | None = None
    out: Tensor | None = None


IN_PLACE = Inverses()


class Launch:
    """Launches the kernels for one shape and dtype, and allocates their outputs.

    Args:
        shape: (B, L, D).
        stream: dtype of the residual stream; all other rows have the dtype of the shift.
        modulation: weight, shift and scale.
        blocks: target number of blocks per multiprocessor.
        longest: maximum number of rows per block.
        inverses: indices of the rows of branch and out.
        centred: LayerNorm instead of RMSNorm.
        epsilon: added to the mean square.
        squares: parts of the mean squares of the branch's rows, (B, L, K) float32; None if its rows are scaled.
        branch_epsilon: added to those mean squares.
    """

    def __init__(
        self,
        shape: torch.Size,
        stream: torch.dtype,
        modulation: Modulation,
        blocks: int,
        longest: int,
        inverses: Inverses,
        centred: bool = False,
        epsilon: float = 0,
        squares: Tensor | None = None,
        branch_epsilon: float = 0,
    ) -> None:
        self.shape, self._blocks, self._longest = shape, blocks, longest
        self.modulation = Modulation(
            None if modulation.weight is None else modulation.weight.float().contiguous(),
            *(as_vectors(t, modulation.shift.dtype) for t in modulation[1:]),
        )
        weight, shift, scale = self.modulation
        self._addresses = (shift.data_ptr(), scale.data_ptr(), 0 if weight is None else weight.data_ptr())
        self._strides = (shift.stride(0), scale.stride(0))
        self.dtype, self.device = modulation.shift.dtype, modulation.shift.device
        self._inverses = [None if t is None else t.to(torch.int32).contiguous() for t in inverses]
        moved = tuple(int(inverse is not None) for inverse in self._inverses)
        scaled = int(squares is not None)
        self._kinds = (ROW_KINDS[self.dtype], int(stream != self.dtype), shape[2], int(centred), *moved, scaled)
        self._squares = as_parameter(squares)
        self._epsilon, self._branch_epsilon = struct.unpack("II", struct.pack("ff", epsilon, branch_epsilon))

    def new(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Allocate a tensor on the device, by default in the dtype of the rows."""
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.device)

    def run(self, name: str, tensors: dict[str, Tensor | None], num_sums: int = 0) -> None:
        """Launch a kernel with tensors by the names of the fields in struct Params.

        A block processes `chunk_rows` rows, or with num_sums, COLUMNS columns of one of the num_sums sums over chunks,
        or of the gradient of the weight.
        """
        num_batch, num_rows, width = self.shape
        address = {name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None}
        gate, squares = tensors.get("gate"), self._squares
        strides = (0 if gate is None else gate.stride(0), *self._strides)
        kernel = _kernel(name, *self._kinds, self.device.index or 0)
        fields = (
            *(address.get(name, 0) for name in ("x", "branch", "gate")),
            *self._addresses,
            *strides,
            *(0 if t is None else t.data_ptr() for t in self._inverses),
            *(0 if t is None or t.ndim == 1 else num_rows for t in self._inverses),
            *(address.get(name, 0) for name in RESULTS),
            *(num_batch, num_rows, self.chunk_rows, self.num_chunks, self._epsilon),
            *((0, 0, 0) if squares is None else (squares.data_ptr(), address.get("dsquares", 0), squares.shape[2])),
            self._branch_epsilon,
        )
        blocks = (-(-width // COLUMNS), num_batch, 1 + num_sums) if num_sums else (self.num_chunks, num_batch, 1)
        kernel(blocks, fields)

    @functools.cached_property
    def chunk_rows(self) -> int:
        """Number of rows per block."""
        num_batch, num_rows, _ = self.shape
        room = self._blocks * num_multiprocessors(self.device.index or 0)
        return rows_of_block(num_rows, max(1, room // num_batch), WARPS, self._longest)

    @property
    def num_chunks(self) -> int:
        """Number of blocks per batch element."""
        return -(-self.shape[1] // self.chunk_rows)


def as_vectors(vectors: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (B, 1, D) as (B, D) in a dtype, with rows that start at multiples of 16 bytes."""
    vectors = vectors[:, 0] if vectors.dtype == dtype else vectors[:, 0].to(dtype)
    size = vectors.element_size()
    aligned = vectors.stride(1) == 1 and not (vectors.data_ptr() % 16 or vectors.stride(0) * size % 16)
    return vectors if aligned else vectors.clone(memory_format=torch.contiguous_format)


@functools.cache
def _kernel(
    name: str,
    row_kind: int,
    x_float: int,
    width: int,
    centred: int,
    branch_moved: int,
    out_moved: int,
    branch_scaled: int,
    device: int,
) -> nvrtc.Kernel:
    options = {
        "ROW_KIND": row_kind,
        "X_FLOAT": x_float,
        "WIDTH": width,
        "CENTRED": centred,
        "BRANCH_MOVED": branch_moved,
        "OUT_MOVED": out_moved,
        "BRANCH_SCALED": branch_scaled,
        "WARPS": WARPS,
        "COLUMNS": COLUMNS,
    }
    floats = {"norm_forward": 3 * width, "norm_backward": max(2, WARPS) * width, "norm_backward_sums": 4 * 32 * WARPS}
    return nvrtc.load(
        (_FOLDER / "device.cu", _FOLDER / "norm_rows.cu", _FOLDER / "norms.cu"),
        name,
        tuple(options.items()),
        threads=32 * WARPS,
        shared_bytes=4 * floats[name],
        num_fields=_NUM_FIELDS,
        device=device,
        carveout=CARVEOUTS.get(name, 100),
    )


class NormForward(NamedTuple):
    """Results of the forward pass.

    x_new: (B, L, D), empty without a branch.
    out: (B, L, D).
    normalised: (B, L, D), normalised rows; empty unless they are kept for the backward pass.
    rstd: (B, L), 1 / rms of each row; empty unless it is kept.
    """

    x_new: Tensor
    out: Tensor
    normalised: Tensor
    rstd: Tensor


def run_forward(
    x: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    modulation: Modulation,
    inverses: Inverses,
    epsilon: float,
    centred: bool,
    keep: bool,
    squares: Tensor | None = None,
    branch_epsilon: float = 0,
) -> NormForward:
    """Run the forward pass; like the op `norm_forward`, but without its dispatch."""
    blocks, scaling = (FORWARD_BLOCKS, FORWARD_LONGEST), (squares, branch_epsilon)
    launch = Launch(x.shape, x.dtype, modulation, *blocks, inverses, centred, epsilon, *scaling)
    out = launch.new(*x.shape)
    x_new = launch.new(*(x.shape if branch is not None else (0,)), dtype=x.dtype)
    normalised = launch.new(*(x.shape if keep else (0,)))
    rstd = launch.new(*(x.shape[:2] if keep else (0,)), dtype=torch.float32)
    launch.run(
        "norm_forward",
        {
            "x": x.contiguous(),
            "branch": None if branch is None else branch.to(launch.dtype).contiguous(),
            "gate": None if gate is None else as_vectors(gate, launch.dtype),
            "x_new": x_new,
            "out": out,
            "normalised": normalised if keep else None,
            "rstd": rstd if keep else None,
        },
    )
    return NormForward(x_new, out, normalised, rstd)


class NormGradients(NamedTuple):
    """Gradients of the arguments of `add_norm_modulate`, None for absent arguments."""

    x: Tensor
    branch: Tensor | None
    gate: Tensor | None
    weight: Tensor | None
    shift: Tensor
    scale: Tensor


def run_backward(
    dx_new: Tensor | None,
    dout: Tensor,
    kept: tuple[Tensor, Tensor],
    branch: Tensor | None,
    gate: Tensor | None,
    modulation: Modulation,
    inverses: Inverses,
    centred: bool,
    stream: torch.dtype,
    squares: Tensor | None = None,
    branch_epsilon: float = 0,
    dsquares: Tensor | None = None,
) -> NormGradients:
    """Run the backward pass: one pass over the rows and one over partial sums, which are added in a fixed order.

    Args:
        dx_new: gradient of the sum, None if the sum is not used.
        dout: gradient of the modulated rows.
        kept: normalised rows and 1 / rms from the forward pass.
        branch, gate, modulation, inverses, centred, squares, branch_epsilon: as in the forward pass.
        stream: dtype of the residual stream.
        dsquares: output for the gradient of squares, (B, L) float32, which all parts of a row have in common.
    """
    normalised, rstd = kept
    blocks, scaling = (BACKWARD_BLOCKS, BACKWARD_LONGEST), (squares, branch_epsilon)
    launch = Launch(normalised.shape, stream, modulation, *blocks, inverses, centred, 0, *scaling)
    num_batch, _, width = normalised.shape
    gated, weighted = branch is not None, modulation.weight is not None
    dx = launch.new(*normalised.shape, dtype=stream)
    dbranch = launch.new(*normalised.shape) if gated else None
    vectors = [launch.new(num_batch, 1, width) for _ in range(2 + gated)]
    dweight = launch.new(width, dtype=torch.float32) if weighted else None
    tensors = {
        "branch": None if branch is None else branch.to(launch.dtype).contiguous(),
        "gate": None if gate is None else as_vectors(gate, launch.dtype),
        "normalised": normalised,
        "rstd": rstd,
        "dout": dout.to(launch.dtype).contiguous(),
        "dx_new": None if dx_new is None else dx_new.to(stream).contiguous(),
        "dx": dx,
        "dbranch": dbranch,
        "sums": launch.new(num_batch, launch.num_chunks, 3, width, dtype=torch.float32),
        "dshift": vectors[0],
        "dscale": vectors[1],
        "dgate": vectors[2] if gated else None,
        "dweight": dweight,
        "dsquares": dsquares,
    }
    launch.run("norm_backward", tensors)
    launch.run("norm_backward_sums", tensors, num_sums=2 + gated)
    return NormGradients(dx, dbranch, vectors[2] if gated else None, dweight, vectors[0], vectors[1])
