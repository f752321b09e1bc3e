"""Training steps of a small backbone and of its recording, and their comparison."""

from contextlib import nullcontext

import torch
from backbones import tiny
from backbones.tiny import BACKBONES


def build(name="ZigMa", **options):
    return tiny.build(BACKBONES[name], **options).train()


def draw(seed=0, batch_size=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch_size, 2, 4, 6, generator=generator), torch.rand(batch_size, generator=generator)


def step(network, backbone, *inputs, dtype=None):
    """Return the loss and the gradients of one micro-batch, which are added to what the parameters hold."""
    with torch.autocast("cpu", dtype) if dtype else nullcontext():
        loss = network(*inputs).float().square().mean()
    loss.backward()
    return [loss.detach(), *(parameter.grad.clone() for parameter in backbone.parameters())]


def assert_follows(graphed, *inputs, dtype=None):
    """The replay is bit-identical to a call of the backbone; under autocast, up to rounding to 16 bits."""
    results = []
    for network in (graphed, graphed.backbone):
        graphed.backbone.zero_grad()
        results.append(step(network, graphed.backbone, *inputs, dtype=dtype))
    names = ["loss", *(name for name, _ in graphed.backbone.named_parameters())]
    for name, found, expected in zip(names, *results, strict=True):
        if dtype:
            assert (found - expected).norm() <= 2 * torch.finfo(dtype).eps * expected.norm(), name
        else:
            assert torch.equal(found, expected), name
