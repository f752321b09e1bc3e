import pytest
import torch
from torch.testing import assert_close

from zigma_pl.models.layers.rms_norm import RMSNorm
from zigma_pl.ops.rms_norm import rms_norm, scale_columns
from zigma_pl.ops.rows import UnscaledRows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_keep_their_type_under_autocast_and_are_close_to_float64(dtype):
    torch.manual_seed(0)
    norm = RMSNorm(64, eps=1e-6)
    torch.nn.init.normal_(norm.weight)
    rows = torch.randn(2, 50, 64).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = norm(rows)
    found.sum().backward()

    exact = rows.detach().double().requires_grad_()
    expected = torch.nn.functional.rms_norm(exact, (64,), norm.weight.detach().to(dtype).double(), 1e-6)
    expected.sum().backward()
    tolerance = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    assert found.dtype == rows.grad.dtype == dtype
    assert norm.weight.grad.dtype == torch.float32
    assert_close(found.double(), expected, **tolerance)
    assert_close(rows.grad.double(), exact.grad, **tolerance)


def test_autocast_does_not_choose_the_type(monkeypatch):
    """On GPUs, autocast of newer versions of PyTorch converts the rows of `rms_norm` to float32."""
    in_autocast, original = [], torch.nn.functional.rms_norm

    def watched(*arguments, **options):
        in_autocast.append(torch.is_autocast_enabled("cpu"))
        return original(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "rms_norm", watched)
    with torch.autocast("cpu", torch.bfloat16):
        RMSNorm(8)(torch.randn(2, 8))
        rms_norm(torch.randn(2, 8), torch.ones(8), 1e-6, num_groups=2)
    assert in_autocast == [False, False]


def test_a_norm_before_a_product_can_be_applied_after_it():
    """The weight as a part of the matrix, and the factors of the rows later, from parts of their mean squares."""
    generator = torch.Generator().manual_seed(0)
    rows, weight, matrix = (torch.randn(size, generator=generator).double() for size in ((2, 5, 12), (12,), (7, 12)))
    parts = rows.unflatten(-1, (3, 4)).square().sum(-1) / 12
    product = rows @ scale_columns(matrix, weight, torch.float64).T
    expected = rms_norm(rows, weight, 0.1) @ matrix.T
    torch.testing.assert_close(UnscaledRows(product, parts, 0.1).scaled(), expected)
    reshaped = UnscaledRows(product, parts, 0.1).reshape(torch.Size((1, 10, 7)))
    torch.testing.assert_close(reshaped.scaled(), expected.view(1, 10, 7))


def test_gradients_of_scaled_columns():
    matrix, weight = (torch.randn(size).double().requires_grad_() for size in ((7, 12), (12,)))
    torch.autograd.gradcheck(lambda *given: scale_columns(*given, torch.float64), (matrix, weight))
    products = scale_columns(matrix.float(), weight.float(), torch.bfloat16)
    assert torch.equal(products, (matrix.float() * weight.float()).bfloat16())
    found = torch.autograd.grad(products.float().square().sum(), (matrix, weight))
    expected = torch.autograd.grad((matrix * weight).square().sum(), (matrix, weight))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_scaled_columns_in_compiled_code():
    compiled = torch.compile(scale_columns, backend="aot_eager", fullgraph=True)
    matrix, weight = torch.randn(7, 12), torch.randn(12)
    assert torch.equal(compiled(matrix, weight, torch.bfloat16), scale_columns(matrix, weight, torch.bfloat16))
