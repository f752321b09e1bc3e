"""The scans to time; each gets its inputs in the memory layout that it has inside a network.

Axes: B batch, L tokens, E inner width, N state.
"""

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast, get_args

import torch
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.ops.rows import inverse_order
from zigma_pl.ops.selective_scan import BACKENDS, ScanBackend, mamba_ssm, selective_scan
from zigma_pl.scan.paths import visit_order as zigzag_order

Shape = tuple[int, int, int, int]
Arguments = dict[str, Tensor]

MAMBAPY = "mambapy"
MAMBA_SSM = "mamba_ssm"
MAMBA_SSM_GATHERS = "mamba_ssm+gathers"
OURS: tuple[str, ...] = tuple(name for name in get_args(ScanBackend) if name not in ("auto", MAMBA_SSM))
NAMES = (*OURS, MAMBA_SSM, MAMBA_SSM_GATHERS, MAMBAPY)


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
        arrange: converts (B, L, E) arguments to the layout of `run`; not timed.
        restore: converts the output back to (B, L, E).
    """

    name: str
    run: Callable[[Arguments, Tensor | None], Tensor]
    follows_order: bool = True
    arrange: Callable[[Arguments, Tensor | None], Arguments] = _unchanged
    restore: Callable[[Tensor], Tensor] = _identity

    def __call__(self, visit_order: Tensor | None = None, **arguments: Tensor) -> Tensor:
        """Scan (B, L, E) arguments, converting them to the contestant's layout."""
        return self.restore(self.run(self.arrange(arguments, visit_order), visit_order))


def default_names(device: torch.device) -> list[str]:
    """Return the default contestants: the fastest backend of this package, and installed peers."""
    if device.type == "cpu":
        return ["cpu"] + ([MAMBAPY] if _mambapy_is_installed() else [])
    fastest = BACKENDS.choose("auto", device.type).name
    peers = [MAMBA_SSM, MAMBA_SSM_GATHERS] if mamba_ssm.available()[0] else []
    return peers if fastest == MAMBA_SSM else [fastest, *peers]


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
    if name not in OURS:
        raise UserError(f"--contestants {name} does not exist: choose from {', '.join(NAMES)}")
    BACKENDS.choose(name, device.type)
    scan: Callable[..., Tensor] = partial(selective_scan, backend=cast("ScanBackend", name))
    return ScanContestant(name, lambda arguments, visit_order: scan(**arguments, visit_order=visit_order))


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


# ----------------------------------------------------------------------------------------------------------- inputs
def make_arguments(shape: Shape, dtype: torch.dtype, device: torch.device, fused: bool) -> Arguments:
    """Return random inputs with the magnitudes of a freshly initialised Mamba block.

    Args:
        shape: (B, L, E, N).
        dtype: dtype of u, delta, B, C and gate; A, skip and delta_bias are float32.
        device: device of the inputs.
        fused: include gate and delta_bias, with B, C and gate as slices of larger tensors, as in a network; otherwise
            delta > 0.
    """
    num_rows, num_tokens, num_channels, num_states = shape
    generator = torch.Generator(device).manual_seed(0)
    normal = partial(torch.randn, generator=generator, device=device, dtype=dtype)
    uniform = partial(torch.rand, generator=generator, device=device)
    dt_rank = math.ceil(num_channels / 32) if fused else 0
    low_rank = normal(num_rows, num_tokens, dt_rank + 2 * num_states)
    arguments = {
        "u": normal(num_rows, num_tokens, num_channels),
        "A": -torch.arange(1.0, num_states + 1, device=device).repeat(num_channels, 1),
        "B": low_rank[..., dt_rank : dt_rank + num_states],
        "C": low_rank[..., dt_rank + num_states :],
        "skip": normal(num_channels).float(),
    }
    if not fused:
        return arguments | {"delta": (0.001 + 0.1 * uniform(num_rows, num_tokens, num_channels)).to(dtype)}
    delta = 0.001 + 0.1 * uniform(num_channels)
    return (
        arguments
        | {
            "delta": 0.1 * normal(num_rows, num_tokens, num_channels),
            "delta_bias": delta + torch.log(-torch.expm1(-delta)),  # inverse softplus of delta
            "gate": normal(num_rows, num_tokens, 2 * num_channels)[..., num_channels:],
        }
    )


def make_order(num_tokens: int, device: torch.device) -> Tensor:
    """Return the first zigzag order on a GPU if the tokens form a square grid, else a random order."""
    side = math.isqrt(num_tokens)
    if device.type == "cuda" and side**2 == num_tokens:
        return torch.as_tensor(zigzag_order("zigzag", side, side), dtype=torch.int32, device=device)
    return torch.randperm(num_tokens, generator=torch.Generator().manual_seed(0)).int().to(device)
