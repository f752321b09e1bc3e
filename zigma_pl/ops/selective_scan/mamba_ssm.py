"""The selective scan with mamba-ssm's CUDA kernel, which scans in raster order, so rows are gathered and scattered."""

import importlib
from typing import Any

import torch
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.ops.rows import check_32_bit_offsets, inverse_order

_INSTALL = "pip install 'zigma-pl[cuda]' on a machine with nvcc, with MAMBA_KEEP_CUDA_BUILD=TRUE set"


def available() -> tuple[bool, str]:
    """Return whether mamba-ssm's Mamba-1 kernel can run here, with the reason if not."""
    try:
        _interface()
        # Newer releases contain the Mamba-1 kernel only if it was enabled at installation.
        importlib.import_module("selective_scan_cuda")
    except ImportError as error:
        return False, f"mamba-ssm's Mamba-1 kernel cannot be imported ({error}); {_INSTALL}"
    if not torch.cuda.is_available():
        return False, "PyTorch sees no CUDA device"
    return True, "mamba-ssm's CUDA kernel, with a gather before and a scatter after it"


def run(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    skip: Tensor | None = None,
    gate: Tensor | None = None,
    delta_bias: Tensor | None = None,
    visit_order: Tensor | None = None,
) -> Tensor:
    """Run the scan with the arguments of `zigma_pl.ops.selective_scan.selective_scan`, but without float64."""
    if u.dtype == torch.float64:
        raise UserError("selective_scan: backend 'mamba_ssm' has no float64; use backend 'cpu', which runs on CUDA too")
    given = (u, delta, B, C, gate)
    rows = [None if t is None else _channel_first(t, u.dtype, visit_order) for t in given]
    check_32_bit_offsets("selective_scan", "mamba_ssm", *rows)
    y = _interface().selective_scan_fn(
        *rows[:2],
        A.float(),
        *rows[2:4],
        D=None if skip is None else skip.float(),
        z=rows[4],
        delta_bias=None if delta_bias is None else delta_bias.float(),
        delta_softplus=delta_bias is not None,
    )
    y = y.transpose(1, 2)
    return y.contiguous() if visit_order is None else y.index_select(1, inverse_order(visit_order))


def _channel_first(rows: Tensor, dtype: torch.dtype, visit_order: Tensor | None) -> Tensor:
    """Convert (B, L, X) to (B, X, L) in visit order, in the dtype that the kernel requires for all rows."""
    arranged = rows if visit_order is None else rows.index_select(1, visit_order)
    return arranged.to(dtype).transpose(1, 2)


def _interface() -> Any:
    return importlib.import_module("mamba_ssm.ops.selective_scan_interface")
