"""The backends of the selective scan: mamba-ssm's calling convention, self-checks, errors."""

import importlib
import sys
import types

import pytest
import torch
from ops.scan_inputs import OPTIONAL, make_arguments, random_order
from torch.nn import functional as F

from zigma_pl.core.errors import BackendUnavailable, UserError
from zigma_pl.ops import selective_scan as scan_module
from zigma_pl.ops.backends import relative_errors
from zigma_pl.ops.selective_scan import mamba_ssm, reference, selective_scan


# ------------------------------------------------------------------------------------------------------- mamba-ssm
def channel_first_scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """A fake of mamba-ssm with its calling convention: rows (B, E, L), one dtype for rows, float32 parameters."""
    assert {t.dtype for t in (delta, B, C, z) if t is not None} <= {u.dtype}
    assert {t.dtype for t in (A, D, delta_bias) if t is not None} == {torch.float32}
    rows = [t.transpose(1, 2).float() for t in (u, delta, B, C)]
    bias = delta_bias if delta_softplus else None
    y = reference.run(rows[0], rows[1], A, rows[2], rows[3], D, delta_bias=bias).transpose(1, 2)
    return (y if z is None else y * F.silu(z.float())).to(u.dtype)


@pytest.fixture
def mamba_stand_in(monkeypatch):
    interface = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = channel_first_scan
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", types.ModuleType("selective_scan_cuda"))


@pytest.mark.usefixtures("mamba_stand_in")
@pytest.mark.parametrize("optional", [(), OPTIONAL])
@pytest.mark.parametrize("ordered", [True, False])
def test_mamba_gets_its_layout_and_returns_ours(optional, ordered):
    arguments, order = make_arguments((2, 13, 6, 3), optional), random_order(13) if ordered else None
    errors = relative_errors(mamba_ssm.run, reference.run, arguments, visit_order=order)
    assert max(errors.values()) < 2e-6, errors
    mixed = {n: t.bfloat16() if n == "u" else t for n, t in arguments.items()}
    assert mamba_ssm.run(**mixed, visit_order=order).dtype == torch.bfloat16


@pytest.mark.usefixtures("mamba_stand_in")
def test_mamba_states_what_it_lacks(monkeypatch):
    with pytest.raises(UserError, match="float64"):
        mamba_ssm.run(**make_arguments((1, 2, 3, 4), dtype=torch.float64))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert mamba_ssm.available() == (False, "PyTorch sees no CUDA device")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert mamba_ssm.available()[0]
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", None)  # importing it raises ImportError
    available, reason = mamba_ssm.available()
    assert not available
    assert "MAMBA_KEEP_CUDA_BUILD=TRUE" in reason


# ----------------------------------------------------------------------------------------- backends and errors
def test_self_check_and_statuses():
    statuses = scan_module.available_backends()
    assert list(statuses) == ["cuda", "mamba_ssm", "cpu", "reference"]
    assert statuses["cpu"].available
    assert statuses["cpu"].devices == ("any",)
    for name in ("cpu", "reference"):
        assert 0 < scan_module.self_check(name) < 1e-5


def test_self_check_notices_a_wrong_backend(monkeypatch):
    monkeypatch.setitem(scan_module._RUNS, "cpu", lambda *args: 1.001 * reference.run(*args))
    assert scan_module.self_check("cpu") > 5e-4


def test_a_named_backend_never_falls_back():
    arguments = make_arguments((1, 2, 3, 4))
    with pytest.raises(BackendUnavailable, match="'mamba_ssm' runs on cuda, the tensors are on cpu"):
        selective_scan(**arguments, backend="mamba_ssm")
    with pytest.raises(
        UserError, match="backend 'cpuu' does not exist; choose one of auto, cuda, mamba_ssm, cpu, reference"
    ):
        selective_scan(**arguments, backend="cpuu")


ORDER_LENGTH_3 = torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": torch.zeros(3, 3)}, r"u must be \(B, L, E\) without empty axes"),
        ({"u": torch.zeros(2, 0, 3)}, "empty axes"),
        ({"u": torch.zeros(2, 5, 3, dtype=torch.int64)}, "u must be real floating point"),
        ({"delta": torch.zeros(2, 4, 3)}, r"delta must be \(B, L, E\) = \(2, 5, 3\), got \(2, 4, 3\)"),
        ({"A": torch.zeros(4, 3)}, r"A must be \(E, N\)"),
        ({"A": torch.zeros(())}, r"A must be \(E, N\)"),
        ({"B": torch.zeros(2, 5, 3)}, r"B must be \(B, L, N\) = \(2, 5, 4\)"),
        ({"C": torch.zeros(2, 5)}, r"C must be \(B, L, N\)"),
        ({"C": torch.zeros(2, 5, 4, dtype=torch.complex64)}, "C must be real floating point"),
        ({"skip": torch.zeros(4)}, r"skip must be \(E,\)"),
        ({"gate": torch.zeros(2, 5, 1)}, r"gate must be \(B, L, E\)"),
        ({"delta_bias": torch.zeros(3, 1)}, r"delta_bias must be \(E,\)"),
        ({"skip": torch.zeros(3, device="meta")}, "skip is on meta, the first argument on cpu"),
        ({"visit_order": torch.arange(5.0)}, "visit_order must be int32 or int64, got torch.float32"),
        ({"visit_order": ORDER_LENGTH_3}, r"visit_order must be \(L,\) = \(5,\), got \(3,\)"),
        ({"visit_order": torch.zeros(5, dtype=torch.int32, device="meta")}, "visit_order is on meta"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(UserError, match=message):
        selective_scan(**{**make_arguments((2, 5, 3, 4)), **change})


def test_importing_the_op_imports_no_optional_package():
    assert importlib.import_module("zigma_pl.ops.selective_scan")
    assert "mamba_ssm" not in sys.modules
