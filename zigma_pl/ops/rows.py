"""Helpers for rows of tokens that the ops share: visit orders, argument checks, the dtype of computations."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zigma_pl.core.errors import UserError


class UnscaledRows(NamedTuple):
    """Rows that are yet to be multiplied by 1 / sqrt(mean square + epsilon), each by its own factor.

    The factors of an RMSNorm can be applied after the matrix product that follows it, where its result is read anyway.

    rows: (B, L, D).
    mean_squares: for each row, the mean square of what the norm takes, as K parts that are to be added: (B, L, K)
        float32.
    epsilon: added to the mean square.
    """

    rows: Tensor
    mean_squares: Tensor
    epsilon: float

    def reshape(self, shape: torch.Size) -> "UnscaledRows":
        """Return as many rows with the shape (B, L, D)."""
        mean_squares = self.mean_squares.reshape(*shape[:2], -1)
        return self._replace(rows=self.rows.reshape(shape), mean_squares=mean_squares)

    def scaled(self) -> Tensor:
        """Return the rows times their factors, in the dtype of the rows."""
        factors = torch.rsqrt(self.mean_squares.sum(-1, keepdim=True) + self.epsilon)
        return (self.rows * factors).to(self.rows.dtype)


def inverse_order(visit_order: Tensor) -> Tensor:
    """Return the inverse of permutations of 0..L-1, (..., L): int64 with inverse[visit_order[k]] = k."""
    steps = torch.arange(visit_order.shape[-1], device=visit_order.device).expand(visit_order.shape)
    return torch.empty_like(steps, memory_format=torch.contiguous_format).scatter_(-1, visit_order.long(), steps)


def take_rows(rows: Tensor, order: Tensor) -> Tensor:
    """Permute rows (B, L, D) by an order, (L,) or (B, L): out[:, k] = rows[:, order[k]]."""
    return _TakeRows.apply(rows, order)


class _TakeRows(torch.autograd.Function):
    """A gather in both passes; the backward pass of indexing would accumulate rows one by one."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return _gather(rows, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, None]:
        return _gather(dout, inverse_order(ctx.saved_tensors[0])), None


def _gather(rows: Tensor, order: Tensor) -> Tensor:
    if order.ndim == 1:
        return rows.index_select(1, order)
    num_batch, num_rows, width = rows.shape
    flat = order + num_rows * torch.arange(num_batch, device=order.device)[:, None]
    return rows.reshape(-1, width).index_select(0, flat.view(-1)).view(rows.shape)


class RowMover:
    """Moves rows between raster order, (B, L, X), and visit order, time-major (L, B, X)."""

    def __init__(self, visit_order: Tensor | None) -> None:
        self.order = visit_order
        self.inverse = None if visit_order is None else inverse_order(visit_order)

    def gather(self, raster: Tensor) -> Tensor:
        """Return a contiguous copy (L, B, X) of raster rows (B, L, X) in visit order."""
        time_major = raster.transpose(0, 1)
        if self.order is None:  # for B = 1, .contiguous() would return the caller's memory, which is overwritten later
            return time_major.clone(memory_format=torch.contiguous_format)
        return time_major.index_select(0, self.order)

    def scatter(self, time_major: Tensor, out: Tensor) -> None:
        """Write contiguous (L, B, X) rows in visit order to contiguous out (B, L, X) in raster order."""
        if self.inverse is None:
            out.copy_(time_major.transpose(0, 1))
            return
        _, num_rows, width = time_major.shape
        # A flat gather writes each output row once; scattering with index_copy_ takes three times as long.
        index = self.inverse * num_rows + torch.arange(num_rows, device=out.device)[:, None]
        torch.index_select(time_major.view(-1, width), 0, index.view(-1), out=out.view(-1, width))


def compute_dtype(rows: Tensor) -> torch.dtype:
    """Return float64 for float64 rows, otherwise float32, as 16 bits are not enough for a recurrent state."""
    return torch.float64 if rows.dtype == torch.float64 else torch.float32


def check_tensor(op: str, name: str, tensor: Tensor, shape: tuple[int, ...], axes: str, device: torch.device) -> None:
    """Raise UserError unless a tensor is floating point, has a shape (documented as `axes`) and is on a device."""
    if tensor.shape != shape:
        raise UserError(f"{op}: {name} must be {axes} = {tuple(shape)}, got {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        raise UserError(f"{op}: {name} must be real floating point, got {tensor.dtype}; convert it with .float()")
    if tensor.device != device:
        raise UserError(f"{op}: {name} is on {tensor.device}, the first argument on {device}; move them to one device")


def check_rows(op: str, name: str, rows: Tensor) -> None:
    """Raise UserError unless rows is a non-empty floating-point tensor (B, L, E)."""
    if rows.ndim != 3 or 0 in rows.shape:
        raise UserError(f"{op}: {name} must be (B, L, E) without empty axes, got {tuple(rows.shape)}")
    check_tensor(op, name, rows, tuple(rows.shape), "(B, L, E)", rows.device)


def check_32_bit_offsets(op: str, backend: str, *tensors: Tensor | None) -> None:
    """Raise UserError for tensors that are too large for kernels with unsigned 32-bit offsets."""
    for tensor in tensors:
        if tensor is None:
            continue
        reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if reach >= 2**32:
            raise UserError(
                f"{op}: backend '{backend}' reads tensors of up to 2^32 elements, got {tuple(tensor.shape)} with "
                f"strides {tensor.stride()}; use backend 'cuda'"
            )


def check_visit_order(
    op: str, visit_order: Tensor, num_tokens: int, device: torch.device, batch_size: int | None = None
) -> None:
    """Raise UserError for a wrong dtype, shape or device; that visit_order is a permutation is not checked.

    With a batch size, visit_order may also be (B, L), an order for each sample.
    """
    if visit_order.dtype not in (torch.int32, torch.int64):
        raise UserError(f"{op}: visit_order must be int32 or int64, got {visit_order.dtype}; convert it with .int()")
    shape = tuple(visit_order.shape)
    if shape != (num_tokens,) and (batch_size is None or shape != (batch_size, num_tokens)):
        expected = f"(L,) = ({num_tokens},)" + (
            "" if batch_size is None else f" or (B, L) = ({batch_size}, {num_tokens})"
        )
        raise UserError(f"{op}: visit_order must be {expected}, got {shape}; build it for this grid")
    if visit_order.device != device:
        raise UserError(f"{op}: visit_order is on {visit_order.device}, the first argument on {device}; move it there")
