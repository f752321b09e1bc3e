"""Sums over rows: emulated CUDA kernels, compared with float64."""

import shutil

import pytest
import torch

from zigma_pl.ops import nvrtc
from zigma_pl.ops.column_sums import column_sums, sum_of_parts

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="the emulation of CUDA needs g++, which is missing"
)

TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def assert_sums(found, rows, dtype):
    expected = rows.double().sum(0)
    assert found.dtype == dtype
    assert (found - expected).abs().max() <= TOLERANCES[dtype] * expected.abs().max()


@needs_compiler
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", [(1, 8), (333, 264), (70, 5), (1000, 40)], ids=str)
def test_column_sums(shape, dtype, emulated):
    rows = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 1).to(dtype)
    assert_sums(column_sums(rows), rows, dtype)
    assert emulated.launched == ["column_sums"] * 2


@needs_compiler
@pytest.mark.usefixtures("emulated")
def test_strided_and_unaligned_rows():
    wide = torch.randn(50, 48).bfloat16()
    for rows in (wide[:, 8:32], wide[:, 1:17], wide.t(), wide[::2]):
        assert_sums(column_sums(rows), rows, torch.bfloat16)


@needs_compiler
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_sum_of_parts(dtype):
    parts = torch.randn(77, 50)
    assert_sums(sum_of_parts(parts, dtype), parts, dtype)


@pytest.mark.skipif(not nvrtc.available()[0], reason="needs a GPU")
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", [(1, 8), (9000, 70), (50_000, 768)], ids=str)
def test_column_sums_on_a_gpu(shape, dtype):
    rows = (torch.randn(shape, device="cuda") + 1).to(dtype)
    assert_sums(column_sums(rows), rows, dtype)
    assert torch.equal(column_sums(rows), column_sums(rows))
