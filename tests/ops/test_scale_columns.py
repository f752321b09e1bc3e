"""Products of a matrix and factors of its columns: emulated CUDA kernels, compared with float64."""

import shutil

import pytest
import torch

from zigma_pl.ops import nvrtc
from zigma_pl.ops import scale_columns_cuda as cuda
from zigma_pl.ops.rms_norm import scale_columns_of_all

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="the emulation of CUDA needs g++, which is missing"
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 128), (333, 384), (768, 256)]


def check(shape, dtype, device="cpu", count=1):
    generator = torch.Generator().manual_seed(0)

    def draw(size):
        return [torch.randn(size, generator=generator).to(device).requires_grad_() for _ in range(count)]

    matrices, factors = draw(shape), draw(shape[1:])
    dproducts = [tensor.detach().to(dtype) for tensor in draw(shape)]
    products = scale_columns_of_all(list(zip(matrices, factors, strict=True)), dtype)
    gradients = torch.autograd.grad(products, (*matrices, *factors), dproducts)
    tensors = zip(products, matrices, factors, dproducts, gradients[:count], gradients[count:], strict=True)
    for product, matrix, factor, dproduct, dmatrix, dfactor in tensors:
        assert torch.equal(product, (matrix * factor).to(dtype))
        assert torch.equal(dmatrix, dproduct.float() * factor)
        expected = (dproduct.double() * matrix).sum(0)
        assert dfactor.dtype == torch.float32
        assert (dfactor - expected).abs().max() <= 1e-6 * expected.abs().max()


@needs_compiler
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_and_gradients(shape, dtype, count, emulated, monkeypatch):
    monkeypatch.setattr(cuda, "supports", lambda *_: True)
    check(shape, dtype, count=count)
    assert emulated.launched == ["scale_columns", "scale_columns_backward", "column_sums"]


@needs_compiler
@pytest.mark.usefixtures("emulated")
def test_strided_and_unaligned_gradients():
    matrix, factors, wide = torch.randn(9, 128), torch.randn(128), torch.randn(9, 264).bfloat16()
    expected = cuda.backward([wide[:, 1:129].clone()], [matrix], [factors])
    shifted = wide.new_empty(9 * 128 + 1)[1:].view(9, 128).copy_(wide[:, 1:129])
    for dproducts in (wide[:, 1:129], wide.t().contiguous().t()[:, 1:129], shifted):
        for (found,), (one,) in zip(cuda.backward([dproducts], [matrix], [factors]), expected, strict=True):
            assert torch.equal(found, one)


def test_matrices_of_different_shapes():
    pairs = [(torch.randn(*size), torch.randn(size[1])) for size in ((3, 4), (2, 5), (3, 4))]
    for product, (matrix, factors) in zip(scale_columns_of_all(pairs, torch.bfloat16), pairs, strict=True):
        assert torch.equal(product, (matrix * factors).bfloat16())


def test_other_tensors_take_pytorch():
    assert not cuda.supports([torch.randn(4, 128)], [torch.randn(128)], torch.bfloat16)
    check((9, 20), torch.bfloat16)


@pytest.mark.skipif(not nvrtc.available()[0], reason="needs a GPU")
@pytest.mark.parametrize("count", [1, 24])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (768, 1536), (9, 20)], ids=str)
def test_products_and_gradients_on_a_gpu(shape, dtype, count):
    check(shape, dtype, "cuda", count)
