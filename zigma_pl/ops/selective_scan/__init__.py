"""The selective scan: the public op, argument checks, and the choice of a backend."""

import functools
from typing import Literal

import torch
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.ops.backends import Backend, BackendStatus, BackendTable, relative_errors
from zigma_pl.ops.rows import check_rows, check_tensor, check_visit_order
from zigma_pl.ops.selective_scan import cpu, cuda, mamba_ssm, reference

__all__ = ["BackendStatus", "ScanBackend", "available_backends", "selective_scan", "self_check"]

ScanBackend = Literal["auto", "cuda", "mamba_ssm", "cpu", "reference"]

BACKENDS = BackendTable(
    "selective_scan",
    (
        Backend("cuda", cuda.run, cuda.available, ("cuda",)),
        Backend("mamba_ssm", mamba_ssm.run, mamba_ssm.available, ("cuda",)),
        Backend("cpu", cpu.run, lambda: (True, "plain PyTorch with a custom backward pass, optimised for the CPU")),
        Backend("reference", reference.run, lambda: (True, "loop over steps with autograd, the slow reference")),
    ),
)
_RUNS = {backend.name: backend.run for backend in BACKENDS.backends}


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    skip: Tensor | None = None,
    gate: Tensor | None = None,
    delta_bias: Tensor | None = None,
    visit_order: Tensor | None = None,
    backend: ScanBackend = "auto",
    deterministic: bool = False,
) -> Tensor:
    """Run the selective state-space recurrence over tokens in visit order; rows stay in raster order.

    h[k] = exp(delta[k] A) h[k-1] + delta[k] B[k] u[k],  h[-1] = 0;   y[k] = C[k] . h[k] + skip * u[k],
    k = visit_order[0..L-1]   (Mamba, arXiv:2312.00752, Eq. 2; ZigMa, arXiv:2403.13802, Eq. 1-3.)

    Args:
        u: (B, L, E).
        delta: (B, L, E), step sizes: before softplus if delta_bias is given, otherwise > 0.
        A: (E, N), negative, used in float32.
        B: (B, L, N).
        C: (B, L, N).
        skip: (E,), factor of the direct path from u to the output.
        gate: (B, L, E); the output is multiplied by silu(gate).
        delta_bias: (E,), added to delta before softplus.
        visit_order: (L,) int32 or int64 permutation, None for raster order. Only its length and dtype are checked.
        backend: implementation to use; "auto" chooses the fastest available one for u's device and logs the choice.
        deterministic: compute bit-identical gradients on every run, which takes memory and slightly more time.

    Returns:
        (B, L, E) in u's dtype, in raster order; the state is float32 (float64 for float64 u).

    Raises:
        UserError: shapes, dtypes or devices do not match, or the backend does not exist or is not deterministic.
        BackendUnavailable: a named backend cannot run here.
    """
    _check(u, delta, A, B, C, skip, gate, delta_bias)
    if visit_order is not None:
        check_visit_order("selective_scan", visit_order, u.shape[1], u.device)
    name = _choose_backend(backend, u.device.type)
    arguments = (u, delta, A, B, C, skip, gate, delta_bias, visit_order)
    if name == "mamba_ssm" and deterministic:
        raise UserError("selective_scan: backend 'mamba_ssm' is not deterministic; use backend 'cuda' or 'cpu'")
    # All other backends are always deterministic.
    return _RUNS[name](*arguments, deterministic) if name == "cuda" else _RUNS[name](*arguments)


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    skip: Tensor | None,
    gate: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    check_rows("selective_scan", "u", u)
    num_rows, num_tokens, num_channels = u.shape
    num_states = A.shape[-1] if A.ndim else 0
    expected = (
        ("delta", delta, (num_rows, num_tokens, num_channels), "(B, L, E)"),
        ("A", A, (num_channels, num_states), "(E, N)"),
        ("B", B, (num_rows, num_tokens, num_states), "(B, L, N)"),
        ("C", C, (num_rows, num_tokens, num_states), "(B, L, N)"),
        ("skip", skip, (num_channels,), "(E,)"),
        ("gate", gate, (num_rows, num_tokens, num_channels), "(B, L, E)"),
        ("delta_bias", delta_bias, (num_channels,), "(E,)"),
    )
    for name, tensor, shape, axes in expected:
        if tensor is not None:
            check_tensor("selective_scan", name, tensor, shape, axes, u.device)


# The choice depends only on the machine, and torch.compile cannot trace imports of packages.
@torch.compiler.assume_constant_result
def _choose_backend(name: str, device_type: str) -> str:
    """Return the name of the backend for an option and a device; raises like `selective_scan`."""
    return BACKENDS.choose(name, device_type).name


def available_backends() -> dict[str, BackendStatus]:
    """Return the availability of each backend on this machine."""
    return BACKENDS.statuses()


def self_check(name: ScanBackend) -> float:
    """Run one backend on a small case with odd sizes and a random visit order, on the first device type it supports.

    Returns: the largest relative error of the output and of all gradients compared with the float64 reference; about
        1e-6 for a correct backend.

    Raises: see `selective_scan`.
    """
    device = BACKENDS[name].self_check_device()
    generator = torch.Generator().manual_seed(0)
    num_rows, num_tokens, num_channels, num_states = 3, 67, 24, 5
    token_shapes = {"u": num_channels, "delta": num_channels, "B": num_states, "C": num_states, "gate": num_channels}
    arguments = {n: torch.randn(num_rows, num_tokens, width, generator=generator) for n, width in token_shapes.items()}
    arguments["A"] = -0.1 - torch.rand(num_channels, num_states, generator=generator)
    arguments |= {n: torch.randn(num_channels, generator=generator) for n in ("skip", "delta_bias")}
    arguments = {n: tensor.to(device) for n, tensor in arguments.items()}
    visit_order = torch.randperm(num_tokens, generator=generator).int().to(device)
    errors = relative_errors(
        functools.partial(selective_scan, backend=name), reference.run, arguments, visit_order=visit_order
    )
    return max(errors.values())
