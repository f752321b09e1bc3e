"""RMSNorm with a weight: emulated CUDA kernels, compared with plain PyTorch in float64."""

import shutil

import pytest
import torch

from zigma_pl.mixers import Mamba2
from zigma_pl.ops import rms_norm
from zigma_pl.ops.backends import relative_errors

TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="the emulation of CUDA needs g++, which is missing"
)


def make_arguments(shape, dtype):
    """Rows, and a weight that is exact in 16 bits, so that rounding it changes nothing."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(shape, generator=generator) * 2 + 0.7
    weight = torch.rand(shape[-1], generator=generator) + 0.5
    return {"rows": rows.to(dtype), "weight": weight.bfloat16().float()}


def run_kernels(num_groups, **given):
    return rms_norm.rms_norm(*given.values(), 1e-5, num_groups)


def run_plain(num_groups, **given):
    return rms_norm.run_reference(*given.values(), 1e-5, num_groups)


@pytest.fixture
def fused(emulated, monkeypatch):
    """Use the CUDA implementation for CPU tensors."""
    monkeypatch.setattr(rms_norm, "runs_fused", lambda rows, num_groups: True)
    monkeypatch.setattr(rms_norm.cuda, "FORWARD_BLOCKS", 2)  # so that a warp processes several rows
    return emulated


@needs_compiler
@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(("width", "num_groups"), [(24, 1), (264, 1), (528, 2)])
def test_output_and_gradients(dtype, width, num_groups):
    errors = relative_errors(run_kernels, run_plain, make_arguments((2, 13, width), dtype), num_groups=num_groups)
    assert max(errors.values()) < TOLERANCES[dtype], errors


@needs_compiler
@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("num_groups", [1, 2])
def test_gradients_of_many_chunks(num_groups, monkeypatch):
    monkeypatch.setattr(rms_norm.cuda, "BACKWARD_BLOCKS", 40)  # more chunks than are added up side by side
    errors = relative_errors(run_kernels, run_plain, make_arguments((5, 31, 48), torch.float32), num_groups=num_groups)
    assert max(errors.values()) < TOLERANCES[torch.float32], errors


@needs_compiler
@pytest.mark.usefixtures("fused")
def test_rows_of_any_layout_and_weights_of_16_bits():
    arguments = make_arguments((2, 7, 16), torch.bfloat16)
    rows, weight = arguments["rows"], arguments["weight"].bfloat16().requires_grad_()
    shifted = torch.cat([rows.new_zeros(1), rows.flatten()])[1:].view(rows.shape)  # no multiple of 16 bytes
    assert rms_norm.cuda._aligned(shifted).data_ptr() % 16 == 0
    expected = run_kernels(1, **arguments)
    for same in (shifted, rows.transpose(0, 1).contiguous().transpose(0, 1), torch.cat([rows, rows], -1)[..., :16]):
        same = same.detach().requires_grad_()
        out = run_kernels(1, rows=same, weight=weight)
        assert torch.equal(out, expected)
        gradients = torch.autograd.grad(out.square().sum(), (same, weight))
        assert [g.dtype for g in gradients] == [torch.bfloat16] * 2
        assert gradients[0].shape == rows.shape


@needs_compiler
@pytest.mark.usefixtures("fused")
def test_the_weight_is_rounded_to_the_type_of_the_rows():
    rows, weight = make_arguments((2, 7, 64), torch.bfloat16).values()
    weight = weight * 1.001
    assert torch.equal(run_kernels(1, rows=rows, weight=weight), run_kernels(1, rows=rows, weight=weight.bfloat16()))


@needs_compiler
@pytest.mark.parametrize("weight_is_trained", [True, False])
def test_all_ways_give_the_same_bits(weight_is_trained, fused, monkeypatch):
    arguments, results = make_arguments((2, 5, 16), torch.bfloat16), []
    for eager in (True, False):
        monkeypatch.setattr(rms_norm.nvrtc, "runs_eagerly", lambda tensor, value=eager: value)
        leaves = {name: t.detach().requires_grad_() for name, t in arguments.items()}
        leaves["weight"].requires_grad_(weight_is_trained)
        output = run_kernels(1, **leaves)
        leaves = [t for t in leaves.values() if t.requires_grad]
        results.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
        with torch.no_grad():
            assert torch.equal(run_kernels(1, **arguments), output)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert fused.launched.count("rms_norm_backward") == 2


@needs_compiler
def test_the_mixer_of_mamba2_normalises_with_the_kernels(fused):
    norm, rows = Mamba2(expand=2, head_dim=8, num_groups=2).build_norm(16), torch.randn(2, 5, 32)
    norm(rows).sum().backward()
    assert fused.launched == ["rms_norm_forward", "rms_norm_backward", "rms_norm_backward_sums"]


@needs_compiler
@pytest.mark.usefixtures("fused")
def test_opcheck():
    rows, weight = (t.requires_grad_() for t in make_arguments((2, 5, 32), torch.bfloat16).values())
    torch.library.opcheck(rms_norm.norm_forward, (rows, weight, 2, 1e-5, True))
    out, rstd = rms_norm.norm_forward(rows.detach(), weight.detach(), 2, 1e-5, True)
    torch.library.opcheck(rms_norm.norm_forward, (rows.detach(), weight.detach(), 2, 1e-5, False))
    torch.library.opcheck(rms_norm.norm_backward, (out, rows.detach(), weight.detach(), rstd))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(("width", "num_groups"), [(24, 1), (1536, 1), (1536, 4), (2304, 1), (3072, 1), (4096, 1)])
def test_rms_norm_on_the_gpu(dtype, width, num_groups):
    arguments = {name: t.cuda() for name, t in make_arguments((2, 1000, width), dtype).items()}
    errors = relative_errors(run_kernels, run_plain, arguments, num_groups=num_groups)
    assert max(errors.values()) < max(TOLERANCES[dtype], 1e-5), errors
