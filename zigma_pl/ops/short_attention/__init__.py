"""Softmax attention from many queries to few keys, such as from image tokens to the tokens of a caption.

PyTorch's kernels are made for many keys: for 80 keys they take several times as long as reading the queries and writing
the output. The kernels here hold all keys and values of a head in shared memory, and all scores of a query in
registers.

Axes: B batch, L queries, T keys, H heads, P width of a head.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from zigma_pl.ops.short_attention import cuda


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return softmax(query key^T / sqrt(P) + bias) value: (B, L, H, P).

    Runs CUDA kernels where they apply: without `torch.compile`, for bfloat16 and float16 on NVIDIA GPUs, heads of 32 or
    64 channels, and up to 128 keys. On GPUs with 99 KiB of shared memory per block, the limit is 112 keys for heads of
    32 channels and 48 for heads of 64. Otherwise runs `scaled_dot_product_attention`. Both compute the same up to
    rounding.

    Args:
        query: (B, L, H, P).
        key, value: (B, T, H, P).
        bias: (B, T), added to the scaled products; None for zero. The kernels give it no gradient.
    """
    tensors = (query, key, value)
    if (bias is not None and bias.requires_grad) or not cuda.supports(*tensors):
        return run_reference(*tensors, bias)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return _Attend.apply(*tensors, bias)
    return cuda.forward(*tensors, bias, False)[0]


def run_reference(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `attend` with PyTorch's attention, for all devices and dtypes."""
    query, key, value = (t.transpose(1, 2) for t in (query, key, value))
    attn_mask = None if bias is None else bias.to(query.dtype)[:, None, None, :]
    return scaled_dot_product_attention(query, key, value, attn_mask=attn_mask).transpose(1, 2)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        out, norms = cuda.forward(query, key, value, bias, True)
        ctx.save_for_backward(query, key, value, bias, norms)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # read once: under activation checkpointing, a second access is an error
        return *cuda.backward(dout, *saved), None
