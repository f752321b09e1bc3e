import pytest
import torch
from torch.testing import assert_close

from zigma_pl.models.layers.rms_norm import RMSNorm
from zigma_pl.ops.rms_norm import rms_norm


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
