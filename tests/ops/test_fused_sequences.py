"""The fused CUDA op on the sequences of a factorized scan, emulated: it gives the same result as separate ops."""

import shutil

import pytest
import torch

from zigma_pl.mixers import Branch, Mamba, Visit
from zigma_pl.models.block import BlockConditions, ZigzagBlock
from zigma_pl.models.mixers.sequences import Sequences
from zigma_pl.ops import mamba_mixer
from zigma_pl.ops.rows import inverse_order

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulation of CUDA needs g++, which is missing")


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(("axis", "num_steps"), [("space", 6), ("time", 3)])
def test_fused_block_agrees_with_the_plain_one(axis, num_steps, monkeypatch):
    torch.manual_seed(0)
    block = ZigzagBlock(24, Mamba().build(24), sequences=Sequences(axis, 3))
    for parameter in block.modulation.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, branch, gate, conditioning = (torch.randn(2, *shape, 24) for shape in ((18,), (18,), (1,), ()))
    inputs = (x, branch, gate, conditioning)
    order = torch.randperm(num_steps).int()
    visit = Visit(torch.empty(0), order, inverse_order(order).int())
    weights_of_loss = torch.randn(2, 18, 24)

    def run(fused):
        monkeypatch.setattr(mamba_mixer, "runs_fused", lambda *_: fused)
        block.zero_grad()
        x, branch, gate, conditioning = (value.clone().requires_grad_() for value in inputs)
        added, mixed = block(x, Branch(branch, gate), BlockConditions(conditioning), visit)
        mixed = mixed.raster_rows()
        ((added + mixed) * weights_of_loss).sum().backward()
        gradients = [value.grad for value in (x, branch, gate, conditioning, *block.parameters())]
        return [added.detach(), mixed.detach(), *gradients]

    for fused, plain in zip(run(True), run(False), strict=True):
        assert torch.linalg.norm(fused - plain) <= 2e-5 * torch.linalg.norm(plain)
