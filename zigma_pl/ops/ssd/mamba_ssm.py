"""SSD with mamba-ssm's Triton kernels, which scan in raster order, so rows are gathered and scattered."""

import importlib
from typing import Any

import torch
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.ops.rows import inverse_order
from zigma_pl.ops.ssd.reference import arrange

CHUNK = 128  # tokens per chunk; the fastest of 64, 128 and 256 on an H200


def available() -> tuple[bool, str]:
    """Return whether mamba-ssm's SSD kernels can run here, with the reason if not."""
    try:
        _kernels()
    except ImportError as error:
        return False, f"mamba-ssm's SSD kernels cannot be imported ({error}); pip install 'zigma-pl[cuda]'"
    if not torch.cuda.is_available():
        return False, "PyTorch sees no CUDA device"
    return True, "mamba-ssm's Triton kernels, with gathers before and a scatter after them"


def run(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    skip: Tensor | None = None,
    gate: Tensor | None = None,
    dt_bias: Tensor | None = None,
    visit_order: Tensor | None = None,
) -> Tensor:
    """Run the scan with the arguments of `zigma_pl.ops.ssd.ssd`, but without float64."""
    if x.dtype == torch.float64:
        raise UserError("ssd: backend 'mamba_ssm' has no float64; use backend 'cpu', which runs on CUDA too")
    rows = [None if t is None else arrange(t.to(x.dtype), visit_order) for t in (x, B, C, gate)]
    y = _kernels().mamba_chunk_scan_combined(
        rows[0],
        arrange(dt, visit_order),
        A.float(),
        *rows[1:3],
        chunk_size=CHUNK,
        D=None if skip is None else skip.float(),
        z=rows[3],
        dt_bias=None if dt_bias is None else dt_bias.float(),
        dt_softplus=dt_bias is not None,
    )
    return y if visit_order is None else arrange(y, inverse_order(visit_order))


def _kernels() -> Any:
    return importlib.import_module("mamba_ssm.ops.triton.ssd_combined")
