"""The scans to time; each gets its inputs in the memory layout that it has inside a network.

Axes: B batch, L tokens, E inner width, N state.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast, get_args

import torch
from torch import Tensor

from zigma_pl.benchmarks.scan_kinds import SELECTIVE_SCAN, SSD, Arguments, ScanKind
from zigma_pl.core.errors import UserError
from zigma_pl.ops import ssd as ssd_op
from zigma_pl.ops.rows import inverse_order
from zigma_pl.ops.selective_scan import BACKENDS, ScanBackend, mamba_ssm, selective_scan
from zigma_pl.ops.ssd import SsdBackend, ssd

MAMBAPY = "mambapy"
MAMBA_SSM = "mamba_ssm"
MAMBA_SSM_GATHERS = "mamba_ssm+gathers"
OURS: tuple[str, ...] = tuple(name for name in get_args(ScanBackend) if name not in ("auto", MAMBA_SSM))
SSD_PREFIX = "ssd-"
SSD_MAMBA_SSM, SSD_MAMBA_SSM_GATHERS = SSD_PREFIX + MAMBA_SSM, SSD_PREFIX + MAMBA_SSM_GATHERS
SSD_NAMES: tuple[str, ...] = (
    *(SSD_PREFIX + name for name in get_args(SsdBackend) if name != "auto"),
    SSD_MAMBA_SSM_GATHERS,
)
NAMES = (*OURS, MAMBA_SSM, MAMBA_SSM_GATHERS, MAMBAPY, *SSD_NAMES)


def _unchanged(arguments: Arguments, visit_order: Tensor | None) -> Arguments:
    return arguments


def _identity(output: Tensor) -> Tensor:
    return output


@dataclass(frozen=True)
class ScanContestant:
    """A scan.

    Args:
        name: name in options.
        run: (arranged arguments, visit order) -> output; this is timed.
        follows_order: False if it only supports raster order.
        arrange: converts arguments from the layout of this package's op to that of `run`; not timed.
        restore: converts the output back to that layout.
        kind: what it computes.
    """

    name: str
    run: Callable[[Arguments, Tensor | None], Tensor]
    follows_order: bool = True
    arrange: Callable[[Arguments, Tensor | None], Arguments] = _unchanged
    restore: Callable[[Tensor], Tensor] = _identity
    kind: ScanKind = SELECTIVE_SCAN

    def __call__(self, visit_order: Tensor | None = None, **arguments: Tensor) -> Tensor:
        """Scan arguments in the layout of this package's op, converting them to the contestant's layout."""
        return self.restore(self.run(self.arrange(arguments, visit_order), visit_order))


def default_names(device: torch.device) -> list[str]:
    """Return the default contestants: the fastest backends of this package, and installed peers."""
    if device.type == "cpu":
        return ["cpu"] + ([MAMBAPY] if _mambapy_is_installed() else []) + [SSD_PREFIX + "cpu"]
    fastest, fastest_ssd = (op.choose("auto", device.type).name for op in (BACKENDS, ssd_op.BACKENDS))
    peers = [MAMBA_SSM, MAMBA_SSM_GATHERS] if mamba_ssm.available()[0] else []
    ssd_peers = [SSD_MAMBA_SSM, SSD_MAMBA_SSM_GATHERS] if ssd_op.mamba_ssm.available()[0] else []
    names = peers if fastest == MAMBA_SSM else [fastest, *peers]
    return [*names, *(ssd_peers if fastest_ssd == MAMBA_SSM else [SSD_PREFIX + fastest_ssd, *ssd_peers])]


def make_contestant(name: str, device: torch.device) -> ScanContestant:
    """Return the contestant with this name.

    Raises:
        UserError: it does not exist, or does not support the device.
        BackendUnavailable: it cannot run on this machine.
    """
    if name == MAMBAPY:
        if device.type != "cpu" or not _mambapy_is_installed():
            raise UserError(f"--contestants {name} needs --device cpu and the package mambapy: pip install mambapy")
        return ScanContestant(name, _run_mambapy, follows_order=False)
    if name in (MAMBA_SSM, MAMBA_SSM_GATHERS):
        BACKENDS.choose(MAMBA_SSM, device.type)
        gathers = name == MAMBA_SSM_GATHERS
        return ScanContestant(name, _run_mamba_ssm, gathers, _channel_first, partial(torch.transpose, dim0=1, dim1=2))
    if name in SSD_NAMES:
        return _make_ssd_contestant(name, device)
    if name not in OURS:
        raise UserError(f"--contestants {name} does not exist: choose from {', '.join(NAMES)}")
    BACKENDS.choose(name, device.type)
    scan: Callable[..., Tensor] = partial(selective_scan, backend=cast("ScanBackend", name))
    return ScanContestant(name, lambda arguments, visit_order: scan(**arguments, visit_order=visit_order))


def _make_ssd_contestant(name: str, device: torch.device) -> ScanContestant:
    """Return a backend of SSD; mamba-ssm's kernels run in raster order, or with gathers through our backend."""
    gathers = name == SSD_MAMBA_SSM_GATHERS
    backend = MAMBA_SSM if gathers else name.removeprefix(SSD_PREFIX)
    ssd_op.BACKENDS.choose(backend, device.type)
    scan: Callable[..., Tensor] = partial(ssd, backend=cast("SsdBackend", backend))
    follows_order = gathers or backend != MAMBA_SSM
    return ScanContestant(
        name, lambda arguments, visit_order: scan(**arguments, visit_order=visit_order), follows_order, kind=SSD
    )


# ------------------------------------------------------------------------------------------------------------ peers
def _mambapy_is_installed() -> bool:
    try:
        importlib.import_module("mambapy.pscan")
    except ImportError:
        return False
    return True


def _run_mambapy(arguments: Arguments, visit_order: Tensor | None) -> Tensor:
    """Run mambapy's parallel scan with the surrounding work of its Mamba block."""
    pscan = importlib.import_module("mambapy.pscan").pscan
    u, delta, A, B, C, skip = (arguments[name] for name in ("u", "delta", "A", "B", "C", "skip"))
    decay = torch.exp(delta.unsqueeze(-1) * A)
    increment = (delta * u).unsqueeze(-1) * B.unsqueeze(2)
    return (pscan(decay, increment) @ C.unsqueeze(-1)).squeeze(3) + skip * u


def _channel_first(arguments: Arguments, visit_order: Tensor | None) -> Arguments:
    """Convert to mamba-ssm's layout (B, E, L); delta, B and C are permuted here, as they are in a network."""

    def arrange(name: str, rows: Tensor) -> Tensor:
        if name in ("A", "skip", "delta_bias"):
            return rows.float()
        permuted = rows if visit_order is None or name in ("u", "gate") else rows.index_select(1, visit_order)
        return permuted.transpose(1, 2).contiguous()

    arranged = {name: arrange(name, rows) for name, rows in arguments.items()}
    return arranged if visit_order is None else arranged | {"inverse_order": inverse_order(visit_order)}


def _run_mamba_ssm(arguments: Arguments, visit_order: Tensor | None) -> Tensor:
    """Run mamba-ssm's kernel; with a visit order, u and gate are gathered before it and the output scattered after."""
    u, gate = arguments["u"], arguments.get("gate")
    if visit_order is not None:
        u = u.index_select(2, visit_order)
        gate = None if gate is None else gate.index_select(2, visit_order)
    y = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn(
        u,
        *(arguments[name] for name in ("delta", "A", "B", "C")),
        D=arguments.get("skip"),
        z=gate,
        delta_bias=arguments.get("delta_bias"),
        delta_softplus="delta_bias" in arguments,
    )
    return y if visit_order is None else y.index_select(2, arguments["inverse_order"])
