"""Copies of the gradients of B and C to rows: the emulated CUDA kernel, compared with PyTorch."""

import shutil

import pytest
import torch

from zigma_pl.ops import nvrtc
from zigma_pl.ops.ssd import terms

SIZES = [(1, 1, 1, 16), (2, 5, 1, 64), (3, 70, 2, 48)]  # samples, tokens, groups, states


def check(sizes, dtype, device="cpu"):
    num_samples, num_tokens, num_groups, num_states = sizes
    added = torch.randn(num_samples, num_tokens, 2, num_groups, num_states).to(device)
    wide = torch.zeros(num_samples, num_tokens, 24 + 2 * num_groups * num_states, dtype=dtype, device=device)
    terms.copy_ordered(added, wide[..., 24:])
    of_16 = [4 * (state % 8 // 2) + 2 * (state // 8) + state % 2 for state in range(16)]  # where each is added
    expected = added.unflatten(-1, (-1, 16))[..., of_16].flatten(2).to(dtype)
    assert torch.equal(wide[..., 24:], expected)
    assert not wide[..., :24].any()


@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulation of CUDA needs g++, which is missing")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_copies_of_the_kernel(sizes, dtype, emulated, monkeypatch):
    monkeypatch.setattr(terms, "_supports", terms._is_aligned)
    check(sizes, dtype)
    assert emulated.launched == ["copy_terms"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_copies_in_pytorch(dtype):
    check(SIZES[2], dtype)


def test_rows_that_the_kernel_does_not_support():
    added, rows = torch.randn(2, 3, 2, 1, 16), torch.empty(2, 3, 34, dtype=torch.bfloat16)
    assert terms._is_aligned(added, rows[..., 2:])
    for other in (rows[..., 1:33], rows[:, :2, 2:], rows[..., 2:].float(), rows.mT.contiguous().mT[..., 2:]):
        assert not terms._is_aligned(added, other)


@pytest.mark.skipif(not nvrtc.available()[0], reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("sizes", [*SIZES, (8, 1024, 1, 64)], ids=str)
def test_copies_on_a_gpu(sizes, dtype):
    check(sizes, dtype, "cuda")
