"""The ops in plain PyTorch compute in the types of their tensors, also under autocast."""

import pytest
import torch
from ops import scan_inputs, ssd_inputs

from zigma_pl.ops.causal_conv1d import causal_conv1d
from zigma_pl.ops.selective_scan import selective_scan
from zigma_pl.ops.ssd import ssd

NUM_TOKENS = 200  # several chunks of SSD


def convolution_arguments():
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (2, NUM_TOKENS, 6), "weight": (6, 4), "bias": (6,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


OPS = {
    "causal_conv1d": (causal_conv1d, convolution_arguments()),
    "selective_scan": (selective_scan, scan_inputs.make_arguments((2, NUM_TOKENS, 6, 4))),
    "ssd": (ssd, ssd_inputs.make_arguments(NUM_TOKENS)),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", OPS)
def test_autocast_changes_nothing(name, backend, dtype):
    op, arguments = OPS[name]
    results = []
    for enabled in (False, True):
        leaves = {key: tensor.clone().requires_grad_() for key, tensor in arguments.items()}
        with torch.autocast("cpu", dtype, enabled=enabled):
            out = op(**leaves, visit_order=ssd_inputs.random_order(NUM_TOKENS), backend=backend)
            gradients = torch.autograd.grad(out.square().sum(), list(leaves.values()))
        results.append((out, *gradients))
    for plain, under_autocast in zip(*results, strict=True):
        assert torch.equal(plain, under_autocast)
