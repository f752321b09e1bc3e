"""Attention to few keys on NVIDIA GPUs: CUDA C++ compiled at run time.

Both passes read queries, and the backward pass the gradient of the output, once; none of them reads the output.

Axes: B batch, L queries, T keys, H heads, P width of a head.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from zigma_pl.ops import nvrtc
from zigma_pl.ops.nvrtc import ROW_KINDS, as_parameter, num_multiprocessors, shared_bytes
from zigma_pl.ops.ssd.launch import aligned

DTYPES = (torch.bfloat16, torch.float16)
HEAD_DIMS = (32, 64)
MAX_TOKENS = 128
FORWARD_WARPS, BACKWARD_WARPS = 4, 8
TILE = 16  # rows of a warp's queries, and keys of a product
# Time of a block besides its steps, in steps: loading keys and values, and storing their gradients.
BLOCK_OVERHEAD = 1

_FOLDER = Path(__file__).parent
_COMMON = (_FOLDER.parent / "device.cu", _FOLDER.parent / "ssd" / "fragments.cu", _FOLDER / "common.cu")
_NUM_FIELDS = 24  # in struct Params of common.cu


@dataclass(frozen=True)
class Layout:
    """Sizes of the kernels for a number of keys and a width of heads.

    Args:
        num_tokens: T, at most MAX_TOKENS.
        head_dim: P.
    """

    num_tokens: int
    head_dim: int

    @property
    def tokens(self) -> int:
        """T, rounded up to whole tiles."""
        return -(-self.num_tokens // TILE) * TILE

    @property
    def forward_bytes(self) -> int:
        """Shared memory of the forward pass: keys, values and bias."""
        return 2 * 2 * self.tokens * self.head_dim + 4 * self.tokens

    @property
    def backward_bytes(self) -> int:
        """Shared memory of the backward pass.

        It also has two steps of queries, one of gradients of the output, the weights and their gradients.
        """
        rows = TILE * BACKWARD_WARPS
        return self.forward_bytes + 3 * 2 * rows * self.head_dim + 2 * rows * (2 * self.tokens + 16)

    @property
    def forward_blocks(self) -> int:
        """Blocks that a multiprocessor runs at the same time, as far as registers allow without spilling."""
        return 4 if self.tokens <= 80 else 3

    @property
    def backward_blocks(self) -> int:
        """As `forward_blocks`, for the backward pass."""
        return 2 if self.tokens <= 80 else 1


@functools.cache
def num_parts(num_sequences: int, num_steps: int, room: int) -> int:
    """Return the number of parts of a sequence that minimises the time of all blocks.

    Args:
        num_sequences: sequences, each with one or more blocks.
        num_steps: steps of a sequence.
        room: number of blocks that the GPU can run at the same time.
    """

    def time(parts: int) -> int:
        return -(-num_sequences * parts // room) * (-(-num_steps // parts) + BLOCK_OVERHEAD)

    parts = min(range(1, num_steps + 1), key=time)
    return -(-num_steps // -(-num_steps // parts))  # none is empty


def supports(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Return whether the kernels can run on these tensors."""
    num_tokens, head_dim = key.shape[1], query.shape[3]
    return (
        query.is_cuda
        and nvrtc.runs_eagerly(query)
        and query.dtype in DTYPES
        and query.dtype is key.dtype is value.dtype
        and head_dim in HEAD_DIMS
        and 0 < num_tokens <= MAX_TOKENS
        and query.numel() > 0
        and nvrtc.available()[0]
        and Layout(num_tokens, head_dim).backward_bytes <= shared_bytes(query.get_device())
    )


def forward(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, keep: bool) -> tuple[Tensor, Tensor | None]:
    """Return the output, (B, L, H, P), and for the backward pass a normaliser of each query, (B, H, L) float32.

    Args:
        query, key, value, bias: see `zigma_pl.ops.short_attention.attend`.
        keep: compute the normalisers, base-2 logarithms of the sums of exp(score); None otherwise.
    """
    batch_size, num_rows, num_heads, _ = query.shape
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    norms = None
    if keep:
        norms = torch.empty(batch_size, num_heads, num_rows, dtype=torch.float32, device=query.device)
    layout = Layout(key.shape[1], query.shape[3])
    part_rows = _part_rows(query, TILE * FORWARD_WARPS, layout.forward_blocks)
    _launch("forward", layout, part_rows, (query, key, value, None), (bias, out, norms, None, None))
    return out, norms


def backward(
    dout: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, norms: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value. Deterministic, since sums are taken in a fixed order.

    Args:
        dout: gradient of the output, (B, L, H, P).
        query, key, value, bias: the arguments of `forward`.
        norms: the normalisers from `forward`.
    """
    new = functools.partial(torch.empty, device=query.device)
    dquery = new(query.shape, dtype=query.dtype)
    layout = Layout(key.shape[1], query.shape[3])
    part_rows = _part_rows(query, TILE * BACKWARD_WARPS, layout.backward_blocks)
    parts, shape = -(-query.shape[1] // part_rows), (2, *key.shape)
    partials = new(parts, *shape, dtype=torch.float32) if parts > 1 else None
    dtokens = new(shape, dtype=query.dtype) if parts == 1 else None
    _launch("backward", layout, part_rows, (query, key, value, dout), (bias, dquery, norms, dtokens, partials))
    if dtokens is None:
        assert partials is not None
        dtokens = partials.sum(0).to(query.dtype)
    return dquery, dtokens[0], dtokens[1]


def _part_rows(query: Tensor, step: int, resident_blocks: int) -> int:
    """Return the number of queries per block, whole steps."""
    batch_size, num_rows, num_heads, _ = query.shape
    steps = -(-num_rows // step)
    room = num_multiprocessors(query.get_device()) * resident_blocks
    return -(-steps // num_parts(batch_size * num_heads, steps, room)) * step


def _launch(
    name: str,
    layout: Layout,
    part_rows: int,
    inputs: tuple[Tensor | None, ...],
    tensors: tuple[Tensor | None, ...],
) -> None:
    query, key = inputs[:2]
    assert query is not None
    assert key is not None
    rows = [None if t is None else aligned(t, query.dtype) for t in inputs]
    bias, *results = tensors
    bias = as_parameter(bias)
    batch_size, num_rows, num_heads, _ = query.shape
    fields = [0 if t is None else t.data_ptr() for t in rows]
    for tensor in rows:
        fields += (0, 0, 0) if tensor is None else tensor.stride()[:3]
    fields += [0 if t is None else t.data_ptr() for t in (bias, *results)]
    fields += (num_rows, key.shape[1], part_rows)
    kernel = _kernel(name, layout.tokens, layout.head_dim, ROW_KINDS[query.dtype], query.get_device())
    kernel((-(-num_rows // part_rows), num_heads, batch_size), fields)


@functools.cache
def _kernel(name: str, tokens: int, head_dim: int, row_kind: int, device: int) -> nvrtc.Kernel:
    layout = Layout(tokens, head_dim)
    options = {"ROW_KIND": row_kind, "TOKENS": tokens, "HEAD_DIM": head_dim}
    forward = name == "forward"
    options |= {"WARPS": FORWARD_WARPS, "BLOCKS": layout.forward_blocks} if forward else {}
    options |= {} if forward else {"WARPS": BACKWARD_WARPS, "BLOCKS": layout.backward_blocks}
    return nvrtc.load(
        (*_COMMON, _FOLDER / f"{name}.cu"),
        f"short_attention_{name}",
        tuple(options.items()),
        threads=32 * options["WARPS"],
        shared_bytes=layout.forward_bytes if forward else layout.backward_bytes,
        num_fields=_NUM_FIELDS,
        device=device,
    )
