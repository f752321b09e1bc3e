"""Inputs of SSD for the tests of the op and of its backends."""

import torch
from torch.nn import functional as F

OPTIONAL = ("skip", "gate", "dt_bias")


def make_arguments(
    num_tokens, batch_size=2, heads=(4, 8), groups=(2, 6), optional=OPTIONAL, dtype=torch.float32, strength=1.0, seed=0
):
    """Return random arguments; heads is (H, P), groups is (G, N), strength scales the step sizes."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes):
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    tokens = (batch_size, num_tokens)
    dt = normal(*tokens, heads[0])
    arguments = {
        "x": normal(*tokens, *heads),
        "dt": strength * (dt if "dt_bias" in optional else F.softplus(dt)),
        "A": -0.1 - normal(heads[0]).abs(),
        "B": normal(*tokens, *groups),
        "C": normal(*tokens, *groups),
        "skip": normal(heads[0]),
        "gate": normal(*tokens, *heads),
        "dt_bias": normal(heads[0]),
    }
    return {n: t.to(dtype) for n, t in arguments.items() if n not in OPTIONAL or n in optional}


def random_order(num_tokens, seed=1):
    """Return a permutation (L,)."""
    return torch.randperm(num_tokens, generator=torch.Generator().manual_seed(seed)).int()


def random_orders(num_tokens, batch_size=2):
    """Return a permutation for each sample, (B, L)."""
    return torch.stack([random_order(num_tokens, seed) for seed in range(batch_size)])
