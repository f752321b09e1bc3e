"""Inputs of the scan for the tests of the op and of its backends."""

import torch
from torch.nn import functional as F

OPTIONAL = ("skip", "gate", "delta_bias")


def make_arguments(shape, optional=OPTIONAL, dtype=torch.float32, seed=0):
    num_rows, num_tokens, num_channels, num_states = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes):
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    delta = normal(num_rows, num_tokens, num_channels)
    arguments = {
        "u": normal(num_rows, num_tokens, num_channels),
        "delta": delta if "delta_bias" in optional else F.softplus(delta),
        "A": -0.2 - normal(num_channels, num_states).abs(),
        "B": normal(num_rows, num_tokens, num_states),
        "C": normal(num_rows, num_tokens, num_states),
        "skip": normal(num_channels),
        "gate": normal(num_rows, num_tokens, num_channels),
        "delta_bias": normal(num_channels),
    }
    return {n: t.to(dtype) for n, t in arguments.items() if n not in OPTIONAL or n in optional}


def random_order(num_tokens, seed=1):
    return torch.randperm(num_tokens, generator=torch.Generator().manual_seed(seed)).int()
