"""Products of a matrix and factors of its columns: emulated CUDA kernels, compared with float64."""

import shutil

import pytest
import torch

from zigma_pl.ops import nvrtc
from zigma_pl.ops import scale_columns_cuda as cuda
from zigma_pl.ops.rms_norm import scale_columns

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="the emulation of CUDA needs g++, which is missing"
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 128), (333, 384), (768, 256)]


def check(shape, dtype, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    matrix, factors, dproducts = (
        torch.randn(size, generator=generator).to(device) for size in (shape, shape[1:], shape)
    )
    dproducts = dproducts.to(dtype)
    matrix.requires_grad_(), factors.requires_grad_()
    products = scale_columns(matrix, factors, dtype)
    assert torch.equal(products, (matrix * factors).to(dtype))
    dmatrix, dfactors = torch.autograd.grad(products, (matrix, factors), dproducts)
    assert torch.equal(dmatrix, dproducts.float() * factors)
    expected = (dproducts.double() * matrix).sum(0)
    assert dfactors.dtype == torch.float32
    assert (dfactors - expected).abs().max() <= 1e-6 * expected.abs().max()


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_and_gradients(shape, dtype, emulated, monkeypatch):
    monkeypatch.setattr(cuda, "supports", lambda *_: True)
    check(shape, dtype)
    assert emulated.launched == ["scale_columns", "scale_columns_backward", "column_sums"]


@needs_compiler
@pytest.mark.usefixtures("emulated")
def test_strided_and_unaligned_gradients():
    matrix, factors, wide = torch.randn(9, 128), torch.randn(128), torch.randn(9, 264).bfloat16()
    expected = cuda.backward(wide[:, 1:129].clone(), matrix, factors)
    shifted = wide.new_empty(9 * 128 + 1)[1:].view(9, 128).copy_(wide[:, 1:129])
    for dproducts in (wide[:, 1:129], wide.t().contiguous().t()[:, 1:129], shifted):
        for found, one in zip(cuda.backward(dproducts, matrix, factors), expected, strict=True):
            assert torch.equal(found, one)


def test_other_tensors_take_pytorch():
    assert not cuda.supports(torch.randn(4, 128), torch.randn(128), torch.bfloat16)
    check((9, 20), torch.bfloat16)


@pytest.mark.skipif(not nvrtc.available()[0], reason="needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (768, 1536), (9, 20)], ids=str)
def test_products_and_gradients_on_a_gpu(shape, dtype):
    check(shape, dtype, "cuda")
