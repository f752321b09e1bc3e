"""Inputs of the scan on a GPU for checks and timing."""

import functools
import math
from unittest import mock

import torch
from torch.nn import functional as F

from zigma_pl.mixers import Visit
from zigma_pl.models.mixers.mamba import MambaMixer
from zigma_pl.scan.paths import visit_order


def scan_arguments(shape, dtype, seed=0, optional=True, strided=True):
    """Return inputs with a mixer's strides: u and gate are halves of one tensor, B and C columns of another."""
    num_rows, num_tokens, num_channels, num_states = shape
    g = torch.Generator("cuda").manual_seed(seed)
    normal = functools.partial(torch.randn, generator=g, device="cuda")
    u, gate = normal(num_rows, num_tokens, 2 * num_channels).to(dtype).chunk(2, -1)
    rank = -(-num_channels // 32)
    rank += -rank % 8
    projected = normal(num_rows, num_tokens, rank + 2 * num_states).to(dtype)
    _, B, C = projected.split([rank, num_states, num_states], -1)
    dt = torch.exp(torch.rand(num_channels, generator=g, device="cuda") * 4.6 - 6.9)
    arguments = {
        "u": u,
        "delta": normal(num_rows, num_tokens, num_channels).to(dtype),
        "A": -torch.arange(1, num_states + 1, device="cuda").float().repeat(num_channels, 1)
        * (1 + 0.1 * torch.rand(num_channels, num_states, generator=g, device="cuda")),
        "B": B,
        "C": C,
    }
    if not strided:
        arguments = {n: t.contiguous() for n, t in arguments.items()}
    if not optional:
        return arguments | {"delta": F.softplus(arguments["delta"].float() - 3).to(dtype)}
    bias = dt + torch.log(-torch.expm1(-dt))
    return arguments | {"skip": normal(num_channels), "gate": gate, "delta_bias": bias}


def mixer_arguments(num_rows, num_tokens, order):
    """Return the scan's inputs in a new mixer of width 768, with channels sorted by step size, for random tokens."""
    torch.manual_seed(0)
    mixer = MambaMixer(768).cuda()
    recorded = {}

    def scan(u, delta, A, B, C, **rest):
        recorded.update(u=u, delta=delta, A=A, B=B, C=C, **{n: rest[n] for n in ("skip", "gate", "delta_bias")})
        return u

    tokens, visit = torch.randn(num_rows, num_tokens, 768, device="cuda"), Visit(torch.empty(0), order)
    patched = mock.patch("zigma_pl.models.mixers.mamba.selective_scan", scan)
    with patched, torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        mixer(tokens, visit)
    return recorded


def random_order(num_tokens, seed=0):
    """Return a random permutation on the GPU."""
    return torch.randperm(num_tokens, generator=torch.Generator().manual_seed(seed)).int().cuda()


def zigzag_order(num_tokens, index):
    """Return one of the eight zigzags through a square grid, on the GPU."""
    side = math.isqrt(num_tokens)
    return torch.from_numpy(visit_order("zigzag", side, side, index=index)).cuda()


def bfloat16_arguments(shape):
    """Return inputs of shape (B, L) with 1,536 channels and 16 states."""
    return scan_arguments((*shape, 1536, 16), torch.bfloat16)
