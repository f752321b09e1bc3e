"""State-space duality (SSD), the scan of Mamba-2: the public op, argument checks, and the choice of a backend."""

import functools
from typing import Literal

import torch
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.ops.backends import Backend, BackendStatus, BackendTable, relative_errors
from zigma_pl.ops.rows import check_tensor, check_visit_order
from zigma_pl.ops.ssd import cpu, cuda, mamba_ssm, reference

__all__ = ["SsdBackend", "available_backends", "self_check", "ssd"]

SsdBackend = Literal["auto", "cuda", "mamba_ssm", "cpu", "reference"]

BACKENDS = BackendTable(
    "ssd",
    (
        Backend("cuda", cuda.run, cuda.available, ("cuda",)),
        Backend("mamba_ssm", mamba_ssm.run, mamba_ssm.available, ("cuda",)),
        Backend("cpu", cpu.run, lambda: (True, "matrix products over chunks in PyTorch, optimised for the CPU")),
        Backend("reference", reference.run, lambda: (True, "loop over steps with autograd, the slow reference")),
    ),
)
_RUNS = {backend.name: backend.run for backend in BACKENDS.backends}


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    skip: Tensor | None = None,
    gate: Tensor | None = None,
    dt_bias: Tensor | None = None,
    visit_order: Tensor | None = None,
    backend: SsdBackend = "auto",
    deterministic: bool = False,
) -> Tensor:
    """Run the state-space recurrence of Mamba-2 over tokens in visit order; rows stay in raster order.

    h[k] = exp(d[k] A) h[k-1] + d[k] B[k] x[k]^T,  h[-1] = 0;   y[k] = C[k] h[k] + skip x[k];   out = y silu(gate),
    k = visit_order[0..L-1], with step sizes d = softplus(dt + dt_bias)   (arXiv:2405.21060, section 6.)

    Args:
        x: (B, L, H, P): H heads of width P.
        dt: (B, L, H), step sizes: before softplus if dt_bias is given, otherwise >= 0.
        A: (H,), negative, used in float32.
        B: (B, L, G, N): G groups of N states. G divides H, and head h belongs to group h // (H / G).
        C: (B, L, G, N).
        skip: (H,), factor of the direct path from x to the output.
        gate: (B, L, H, P); the output is multiplied by silu(gate).
        dt_bias: (H,), added to dt before softplus.
        visit_order: int32 or int64 permutation, (L,) or one for each sample, (B, L); None for raster order. Only its
            shape and dtype are checked.
        backend: implementation to use; "auto" chooses the fastest available one for x's device and logs the choice.
        deterministic: compute bit-identical gradients on every run.

    Returns:
        (B, L, H, P) in x's dtype, in raster order; the state is float32 (float64 for float64 x).

    Raises:
        UserError: shapes, dtypes or devices do not match, or the backend does not exist or is not deterministic.
        BackendUnavailable: a named backend cannot run here.
    """
    _check(x, dt, A, B, C, skip, gate, dt_bias)
    if visit_order is not None:
        check_visit_order("ssd", visit_order, x.shape[1], x.device, batch_size=len(x))
    name = _choose_backend(backend, x.device.type)
    arguments = (x, dt, A, B, C, skip, gate, dt_bias, visit_order)
    if name == "mamba_ssm" and deterministic:
        raise UserError("ssd: backend 'mamba_ssm' is not deterministic; use backend 'cuda' or 'cpu'")
    # All other backends are always deterministic.
    return _RUNS[name](*arguments, deterministic) if name == "cuda" else _RUNS[name](*arguments)


def _check(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    skip: Tensor | None,
    gate: Tensor | None,
    dt_bias: Tensor | None,
) -> None:
    if x.ndim != 4 or 0 in x.shape:
        raise UserError(f"ssd: x must be (B, L, H, P) without empty axes, got {tuple(x.shape)}")
    batch_size, num_tokens, num_heads, _ = x.shape
    num_groups, num_states = B.shape[2:] if B.ndim == 4 else (1, 1)
    if 0 in B.shape or num_heads % num_groups:
        raise UserError(f"ssd: the groups of B, (B, L, G, N) = {tuple(B.shape)}, must divide the {num_heads} heads")
    by_group = (batch_size, num_tokens, num_groups, num_states)
    expected = (
        ("x", x, tuple(x.shape), "(B, L, H, P)"),
        ("dt", dt, (batch_size, num_tokens, num_heads), "(B, L, H)"),
        ("A", A, (num_heads,), "(H,)"),
        ("B", B, by_group, "(B, L, G, N)"),
        ("C", C, by_group, "(B, L, G, N)"),
        ("skip", skip, (num_heads,), "(H,)"),
        ("gate", gate, tuple(x.shape), "(B, L, H, P)"),
        ("dt_bias", dt_bias, (num_heads,), "(H,)"),
    )
    for name, tensor, shape, axes in expected:
        if tensor is not None:
            check_tensor("ssd", name, tensor, shape, axes, x.device)


# The choice depends only on the machine, and torch.compile cannot trace imports of packages.
@torch.compiler.assume_constant_result
def _choose_backend(name: str, device_type: str) -> str:
    return BACKENDS.choose(name, device_type).name


def available_backends() -> dict[str, BackendStatus]:
    """Return the availability of each backend on this machine."""
    return BACKENDS.statuses()


def self_check(name: SsdBackend) -> float:
    """Run one backend on a small case and return its largest relative error; see `selective_scan.self_check`."""
    device = BACKENDS[name].self_check_device()
    generator = torch.Generator().manual_seed(0)
    batch_size, num_tokens, num_heads, head_dim, num_groups, num_states = 2, 131, 4, 32, 2, 16
    heads, groups = (num_heads, head_dim), (num_groups, num_states)
    shapes = {"x": heads, "dt": (num_heads,), "B": groups, "C": groups, "gate": heads}
    arguments = {n: torch.randn(batch_size, num_tokens, *shape, generator=generator) for n, shape in shapes.items()}
    arguments["A"] = -0.1 - torch.rand(num_heads, generator=generator)
    arguments |= {n: torch.randn(num_heads, generator=generator) for n in ("skip", "dt_bias")}
    arguments = {n: tensor.to(device) for n, tensor in arguments.items()}
    visit_order = torch.randperm(num_tokens, generator=generator).int().to(device)
    errors = relative_errors(functools.partial(ssd, backend=name), reference.run, arguments, visit_order=visit_order)
    return max(errors.values())
