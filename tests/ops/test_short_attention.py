"""Attention to few keys: the CUDA kernels, emulated on the CPU with small inputs, and on a GPU if there is one."""

import functools
import math
import shutil

import pytest
import torch
from ops.cuda_emulation import Emulator
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from zigma_pl.models.layers.cross_attention import CrossAttention, masked_caption
from zigma_pl.ops import nvrtc, short_attention
from zigma_pl.ops.short_attention import attend, cuda

NAMES = ("query", "key", "value")
TOLERANCES = {torch.bfloat16: 1e-2, torch.float16: 1.5e-3}
EXCLUDED = -30_000.0

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="the emulation of CUDA needs g++, which is missing"
)


@pytest.fixture
def emulator(kernel_folder, monkeypatch):
    """Run the kernels on CPU tensors, with NaN in new tensors and shared memory, and one multiprocessor."""
    emulator = Emulator(kernel_folder)
    cuda._kernel.cache_clear()
    monkeypatch.setattr(nvrtc, "load", emulator.load)
    monkeypatch.setattr(cuda, "num_multiprocessors", lambda device: 1)
    monkeypatch.setattr(cuda, "supports", lambda *tensors: True)
    torch.use_deterministic_algorithms(True)
    yield emulator
    torch.use_deterministic_algorithms(False)
    cuda._kernel.cache_clear()


def make_arguments(sizes, dtype, device="cpu"):
    """Return inputs for sizes (B, L, T, H, P), which are slices of wider rows, and a bias that excludes some keys.

    The first sample excludes all keys, and each one excludes fewer than the sample before. Other keys have a bias of
    about 150, which overflows exp in float32 if scores are not normalised.
    """
    batch_size, num_rows, num_tokens, num_heads, head_dim = sizes
    normal = functools.partial(torch.randn, generator=torch.Generator().manual_seed(num_rows + num_tokens))
    lengths = (num_rows, num_tokens, num_tokens)
    wide = (normal(batch_size, length, num_heads, head_dim + 8) for length in lengths)
    rows = {name: t.to(device, dtype)[..., 8:] for name, t in zip(NAMES, wide, strict=True)}
    excluded = torch.arange(num_tokens) >= torch.arange(batch_size)[:, None] * num_tokens // batch_size
    return rows, torch.where(excluded, EXCLUDED, 150 + normal(batch_size, num_tokens)).to(device)


def results_of(run, rows, bias):
    """Return the output and all gradients, for a gradient of the output that every dtype represents exactly."""
    leaves = {name: t.detach().requires_grad_() for name, t in rows.items()}
    out = run(**leaves, bias=bias)
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).mul(8).round().div(8)
    gradients = torch.autograd.grad(out, list(leaves.values()), dout.to(out))
    return {"output": out.detach(), **dict(zip(leaves, gradients, strict=True))}


def check(sizes, dtype, biased, device="cpu"):
    """Compare output and gradients with float64, by the norm of the errors relative to that of each result."""
    rows, bias = make_arguments(sizes, dtype, device)
    bias = bias if biased else None
    tested = results_of(attend, rows, bias)
    doubles = {name: t.double() for name, t in rows.items()}
    exact = results_of(short_attention.run_reference, doubles, bias)
    for name, result in exact.items():
        error = (tested[name].double() - result).norm()
        # With one key, all weights are 1 and have no gradient.
        assert error <= TOLERANCES[dtype] * max(float(result.norm()), 1.0), (name, float(error / result.norm()))
        assert tested[name].dtype is dtype


def inputs_of(sizes, dtype=torch.bfloat16):
    """Return query, key and value for sizes (B, L, T, H, P)."""
    return tuple(make_arguments(sizes, dtype)[0].values())


@needs_compiler
@pytest.mark.parametrize(
    ("sizes", "dtype", "biased"),
    [
        ((2, 1, 1, 1, 64), torch.bfloat16, True),
        ((2, 63, 8, 1, 64), torch.bfloat16, False),
        ((2, 65, 77, 1, 64), torch.bfloat16, True),
        ((1, 64, 80, 1, 64), torch.bfloat16, False),
        ((1, 200, 16, 2, 64), torch.bfloat16, False),
        ((2, 20, 128, 1, 32), torch.float16, True),
    ],
)
def test_emulated_kernels_match_float64(emulator, sizes, dtype, biased):
    check(sizes, dtype, biased)
    assert emulator.launched == ["short_attention_forward", "short_attention_backward"]


@needs_compiler
def test_parts_of_a_sequence_are_added_in_a_fixed_order(emulator, monkeypatch):
    monkeypatch.setattr(cuda, "num_multiprocessors", lambda device: 3)
    rows, bias = make_arguments((2, 300, 77, 1, 64), torch.bfloat16)
    assert cuda._part_rows(rows["query"], 128, 2) == 128  # three parts, the last one shorter
    check((2, 300, 77, 1, 64), torch.bfloat16, True)
    first, second = (results_of(attend, rows, bias) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@needs_compiler
@pytest.mark.parametrize("offset", [8, 1])
def test_aligned_slices_of_wider_rows_are_read_in_place(emulator, monkeypatch, offset):
    addresses = []
    monkeypatch.setattr(nvrtc, "load", lambda *_, **__: lambda grid, fields: addresses.append(fields[:3]))
    wide = torch.randn(2, 4, 1, 3 * 64 + 8).bfloat16()
    rows = wide[..., offset : offset + 192].split(64, -1)
    cuda.forward(*rows, None, False)
    read_in_place = addresses == [[t.data_ptr() for t in rows]]
    assert read_in_place == (offset == 8)


@needs_compiler
def test_gradients_are_the_same_with_activation_checkpointing(emulator):
    rows, bias = make_arguments((1, 5, 8, 1, 64), torch.bfloat16)
    stored = results_of(attend, rows, bias)
    again = results_of(lambda bias, **rows: checkpoint(attend, *rows.values(), bias, use_reentrant=False), rows, bias)
    assert all(torch.equal(stored[name], again[name]) for name in stored)


@needs_compiler
@pytest.mark.parametrize("masked", [True, False])
def test_cross_attention_is_the_same_with_the_kernels(emulator, monkeypatch, masked):
    torch.manual_seed(0)
    attention = CrossAttention(64, num_heads=2, head_dim=32).bfloat16()
    inputs = {"tokens": torch.randn(2, 20, 64).bfloat16(), "caption": torch.randn(2, 11, 64).bfloat16()}
    mask = torch.arange(11) < torch.tensor([[11], [4]]) if masked else None
    parameters = dict(attention.named_parameters())

    def gradients():
        leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
        out = attention(leaves["tokens"], *masked_caption(leaves["caption"], mask))
        leaves |= parameters
        return dict(zip(leaves, torch.autograd.grad(out.float().square().sum(), leaves.values()), strict=True))

    tested = gradients()
    assert emulator.launched == ["short_attention_forward", "short_attention_backward"]
    monkeypatch.setattr(cuda, "supports", lambda *tensors: False)
    for name, expected in gradients().items():
        error = (tested[name] - expected).float().norm() / expected.float().norm()
        assert error <= 1e-2, name


@needs_compiler
def test_without_gradients_nothing_is_kept_for_them(emulator):
    rows = inputs_of((1, 5, 8, 1, 64))
    out = attend(*rows)
    assert not out.requires_grad
    torch.testing.assert_close(out, short_attention.run_reference(*rows), rtol=0, atol=2e-2)
    assert emulator.launched == ["short_attention_forward"]
    assert cuda.forward(*rows, None, False)[1] is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpu_tensors_use_the_attention_of_pytorch(dtype):
    rows, bias = make_arguments((2, 7, 5, 2, 32), dtype)
    assert torch.equal(attend(**rows, bias=bias), short_attention.run_reference(**rows, bias=bias))


def test_a_bias_with_gradient_uses_the_attention_of_pytorch(emulator):
    rows, bias = make_arguments((2, 7, 5, 2, 32), torch.float32)
    bias.requires_grad_()
    attend(**rows, bias=bias).square().sum().backward()
    assert bias.grad.abs().sum() > 0
    assert emulator.launched == []


@pytest.mark.parametrize(
    ("num_tokens", "head_dim", "dtype", "kilobytes", "supported"),
    [
        (77, 64, torch.bfloat16, 163, True),
        (128, 64, torch.float16, 163, True),
        (1, 32, torch.bfloat16, 99, True),
        (77, 64, torch.bfloat16, 99, False),
        (129, 64, torch.bfloat16, 163, False),
        (77, 128, torch.bfloat16, 163, False),
        (77, 64, torch.float32, 163, False),
    ],
)
def test_supported_sizes(monkeypatch, num_tokens, head_dim, dtype, kilobytes, supported):
    monkeypatch.setattr(nvrtc, "available", lambda: (True, ""))
    monkeypatch.setattr(nvrtc, "runs_eagerly", lambda tensor: True)
    monkeypatch.setattr(cuda, "shared_bytes", lambda device: 1024 * kilobytes)
    with FakeTensorMode():
        lengths = (1024, num_tokens, num_tokens)
        rows = [torch.empty(2, length, 8, head_dim, dtype=dtype, device="cuda") for length in lengths]
    assert cuda.supports(*rows) == supported


def test_tensors_without_data_use_the_attention_of_pytorch(monkeypatch):
    monkeypatch.setattr(nvrtc, "available", lambda: (True, ""))
    with FakeTensorMode():
        rows = [torch.empty(2, length, 8, 64, dtype=torch.bfloat16, device="cuda") for length in (16, 8, 8)]
        assert not cuda.supports(*rows)
        assert attend(*rows).shape == rows[0].shape


@pytest.mark.parametrize(
    ("num_sequences", "num_steps", "room", "parts"),
    [(256, 8, 264, 1), (64, 32, 264, 4), (256, 16, 528, 2), (8, 5, 264, 5)],
)
def test_parts_fill_the_gpu(num_sequences, num_steps, room, parts):
    assert cuda.num_parts(num_sequences, num_steps, room) == parts


@pytest.mark.parametrize("num_steps", range(1, 20))
def test_no_part_is_empty(num_steps):
    parts = cuda.num_parts(3, num_steps, 40)
    assert (parts - 1) * math.ceil(num_steps / parts) < num_steps


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("sizes", [(3, 1000, 77, 8, 64), (2, 130, 128, 3, 32), (1, 1, 1, 1, 64), (32, 1024, 80, 8, 64)])
def test_kernels_match_float64_on_a_gpu(sizes, dtype, biased):
    rows = inputs_of(sizes, dtype)
    assert cuda.supports(*(t.cuda() for t in rows))
    check(sizes, dtype, biased, "cuda")
