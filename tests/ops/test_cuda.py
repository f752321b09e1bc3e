"""The CUDA kernels, emulated on the CPU with tiny inputs, and on a GPU if there is one."""

import functools
import shutil

import pytest
import torch
from ops.scan_inputs import OPTIONAL, make_arguments, random_order

from zigma_pl.core.errors import UserError
from zigma_pl.ops import causal_conv1d as conv
from zigma_pl.ops import causal_conv1d_cuda as conv_cuda
from zigma_pl.ops import nvrtc, rows
from zigma_pl.ops.backends import relative_errors
from zigma_pl.ops.selective_scan import cuda, direct, launch, layout, reference, selective_scan

TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 1e-2}

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="the emulation of CUDA needs g++, which is missing"
)
needs_gpu = pytest.mark.skipif(
    not cuda.available()[0], reason=f"no GPU: {cuda.available()[1]}; the emulation is tested"
)


def scan_arguments(shape, dtype=torch.float32, optional=OPTIONAL):
    arguments = make_arguments(shape, optional, dtype)
    return {n: t.float() if n in ("A", "skip", "delta_bias") else t for n, t in arguments.items()}


def scan_errors(arguments, visit_order=None, deterministic=False):
    run = functools.partial(cuda.run, deterministic=deterministic)
    return relative_errors(run, reference.run, arguments, visit_order=visit_order)


# ------------------------------------------------------------------------------------------------- scan, emulated
@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "deterministic"),
    [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False), (torch.float16, True)],
    ids=str,
)
def test_scan_along_an_order(emulated, dtype, deterministic):
    errors = scan_errors(scan_arguments((2, 70, 40, 16), dtype), random_order(70), deterministic)
    assert max(errors.values()) < TOLERANCES[dtype], errors
    assert set(emulated.launched) == {"scan_forward", "scan_backward"}


@needs_compiler
@pytest.mark.parametrize("num_states", [3, 30, 64])
def test_scan_in_chunks_of_odd_sizes(emulated, monkeypatch, num_states):
    monkeypatch.setattr(launch, "chunks_for", lambda blocks, tiles, *_: (1, tiles))
    errors = scan_errors(scan_arguments((2, 68, 11, num_states)), random_order(68))
    assert max(errors.values()) < TOLERANCES[torch.float32], errors
    assert emulated.launched == [
        *("scan_chunk_states", "scan_forward"),
        *("scan_chunk_adjoints", "scan_backward"),
    ]


@needs_compiler
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(
    ("speed", "num_pieces", "dtype", "tolerance"),
    [
        *((speed, pieces, torch.float32, 5e-6) for speed, pieces in [(0.02, 1), (1.0, 2), (1.0, 3), (50.0, 2)]),
        (1.0, 3, torch.bfloat16, 1e-2),
    ],
    ids=str,
)
def test_chunks_leave_out_only_what_has_decayed(monkeypatch, dtype, tolerance, speed, num_pieces):
    monkeypatch.setattr(launch, "chunks_for", lambda blocks, tiles, *_: (4, -(-tiles // 4)))
    monkeypatch.setattr(launch, "pieces_for", lambda *_: num_pieces)  # of three pieces, one is empty
    arguments = scan_arguments((1, 300, 40, 16), dtype)
    spread = torch.linspace(0, 1, 40)[:, None] * 2 - 1  # slow and fast channels in one warp
    arguments["A"] = arguments["A"] * speed * 10**spread
    arguments["A"][3, 5] = 0
    arguments["A"][7, 2] = 1e-3
    errors = scan_errors(arguments, random_order(300))
    assert max(errors.values()) < tolerance, errors


@needs_compiler
@pytest.mark.usefixtures("emulated")
def test_blocks_of_fast_states_sum_durations_for_the_slow_ones(monkeypatch):
    monkeypatch.setattr(launch, "chunks_for", lambda blocks, tiles, *_: (4, -(-tiles // 4)))
    arguments = scan_arguments((1, 300, 8, 30))
    arguments["A"] *= torch.where(torch.arange(30) < 16, 50.0, 0.02)
    errors = scan_errors(arguments, random_order(300))
    assert max(errors.values()) < 5e-6, errors


@needs_compiler
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("optional", [(), ("gate",), ("delta_bias", "skip")])
@pytest.mark.parametrize("num_tokens", [1, 32])
def test_scan_without_optional_inputs(optional, num_tokens):
    errors = scan_errors(scan_arguments((1, num_tokens, 8, 16), optional=optional))
    assert max(errors.values()) < TOLERANCES[torch.float32], errors


@needs_compiler
@pytest.mark.usefixtures("emulated")
def test_scan_reads_slices_of_projections_in_place():
    arguments, order = scan_arguments((2, 40, 16, 16), torch.bfloat16), random_order(40)
    u, gate = torch.cat([arguments["u"], arguments["gate"]], -1).chunk(2, -1)
    padding = torch.zeros(2, 40, 8, dtype=torch.bfloat16)
    _, B, C = torch.cat([padding, arguments["B"], arguments["C"]], -1).split([8, 16, 16], -1)
    sliced = arguments | {"u": u, "gate": gate, "B": B, "C": C}
    prepared = launch.Call(*(sliced[n] for n in ("u", "delta", "A", "B", "C", "skip", "gate", "delta_bias")), order)
    assert prepared.rows[0].address == u.data_ptr()
    assert prepared.rows[5].address == C.data_ptr()
    assert prepared.aligned
    results = []
    for given in (arguments, sliced):
        leaves = {n: t.detach().requires_grad_() for n, t in given.items()}
        loss = cuda.run(**leaves, visit_order=order, deterministic=True).float().square().sum()
        results.append([loss, *torch.autograd.grad(loss, list(leaves.values()))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def far_apart(rows, path):
    """Rows (1, 2, X) in bfloat16 that are 8 GB apart, in a sparse file."""
    stride = 2**32 + 8
    memory = torch.from_file(str(path), shared=True, size=stride + rows.shape[2], dtype=torch.bfloat16)
    return memory.as_strided(rows.shape, (len(memory), stride, 1)).copy_(rows)


@needs_compiler
@pytest.mark.usefixtures("emulated")
def test_rows_may_lie_more_than_2_to_the_32_elements_apart(tmp_path):
    """Kind: offsets that exceed 32 bits."""
    arguments = scan_arguments((1, 2, 16, 16), torch.bfloat16)
    far = {n: far_apart(t, tmp_path / n) if t.ndim == 3 else t for n, t in arguments.items()}
    weight = torch.ones(16, 4)
    for backend in ("reference", "cpu"):
        assert torch.equal(selective_scan(**far, backend=backend), selective_scan(**arguments, backend=backend))
        convolved = [conv.causal_conv1d(given["u"], weight, backend=backend) for given in (far, arguments)]
        assert torch.equal(*convolved)
    results = []
    for given in (arguments, far):
        leaves = {n: t.detach().requires_grad_() for n, t in given.items()}
        out = cuda.run(**leaves, deterministic=True)
        results.append([out, *torch.autograd.grad(out, list(leaves.values()), given["delta"])])
        results[-1].append(conv_cuda.run(given["u"], weight, None, None, "silu"))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_packages_refuse_what_they_would_read_wrongly():
    far = torch.empty_strided((1, 3, 8), (0, 2**31, 1), device="meta")
    rows.check_32_bit_offsets("op", "package", far[:, :2], None, torch.empty(2, 3, 8))
    with pytest.raises(UserError, match="2\\^32"):
        rows.check_32_bit_offsets("op", "package", far)


def test_more_tokens_than_the_kernels_can_count_are_refused():
    u = torch.empty_strided((1, 2**30, 1), (0, 0, 1), device="meta")
    with pytest.raises(UserError, match="tokens"):
        launch.Call(u, u, torch.empty(1, 1), u, u, None, None, None, None)


@needs_compiler
@pytest.mark.usefixtures("emulated")
def test_scan_of_mixed_dtypes_is_computed_in_float32():
    arguments = scan_arguments((1, 33, 8, 16))
    mixed = arguments | {"u": arguments["u"].bfloat16()}
    output = cuda.run(**mixed)
    assert output.dtype == torch.bfloat16
    expected = cuda.run(**mixed | {"u": mixed["u"].float()}).bfloat16()
    assert torch.equal(output, expected)


@needs_compiler
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("optional", [(), OPTIONAL])
def test_scan_opcheck(optional):
    arguments = scan_arguments((1, 5, 8, 16), optional=optional)
    tensors = [arguments.get(name) for name in ("u", "delta", "A", "B", "C", *OPTIONAL)]
    order = random_order(5) if optional else None
    leaves = [t if t is None else t.requires_grad_() for t in tensors]
    torch.library.opcheck(cuda.scan_forward, (*leaves, order, True, True))
    plain = [t if t is None else t.detach() for t in tensors]
    out, states = cuda.scan_forward(*plain, order, True, True)
    torch.library.opcheck(cuda.scan_backward, (torch.ones_like(out), *plain, order, states, True))


# ------------------------------------------------------------------------------------ scan without autograd, emulated
def scan_inputs(shape, dtype, optional=OPTIONAL):
    arguments = scan_arguments(shape, dtype, optional)
    return [*(arguments.get(n) for n in ("u", "delta", "A", "B", "C", *OPTIONAL)), random_order(shape[1])]


@needs_compiler
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kept_states_may_be_few_or_many(dtype):
    inputs = scan_inputs((1, 70, 8, 16), dtype)
    output, fewest = direct.forward(*inputs, 32)
    assert fewest.shape == (1, 3, 8, 16)
    assert fewest.dtype == dtype
    assert direct.forward(*inputs, 0)[1].numel() == 0
    gradients = {}
    for keep_every in (8, 16, 32):
        same, states = direct.forward(*inputs, keep_every)
        assert torch.equal(same, output)
        assert states.shape[1] == 96 // keep_every
        assert torch.equal(states[:, :: 32 // keep_every], fewest)
        gradients[keep_every] = direct.backward(output, *inputs, states, deterministic=True)
    for name in ("u", "delta", "A", "BC", "skip", "delta_bias", "gate"):
        many, some, few = (getattr(gradients[keep_every], name).float() for keep_every in (8, 16, 32))
        assert (many - few).norm() <= TOLERANCES[dtype] * few.norm(), name
        assert (some - few).norm() <= TOLERANCES[dtype] * few.norm(), name


@needs_compiler
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(
    ("dtype", "optional"), [(torch.float32, OPTIONAL), (torch.bfloat16, OPTIONAL), (torch.bfloat16, ())], ids=str
)
def test_backward_gives_the_output_again_and_writes_where_it_is_told(dtype, optional):
    inputs = scan_inputs((2, 40, 16, 16), dtype, optional)
    output, states = direct.forward(*inputs)
    expected = direct.backward(output, *inputs, states, deterministic=True)
    assert expected.output is None
    wide = torch.full((2, 40, 32), 7.0, dtype=dtype)
    dgate = wide[..., 16:] if optional else None
    found = direct.backward(output, *inputs, states, deterministic=True, want_output=True, dgate=dgate)
    assert (found.output.float() - output.float()).norm() <= TOLERANCES[dtype] * output.float().norm()
    for name in ("u", "delta", "A", "BC", "skip", "delta_bias"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    if optional:
        assert found.gate is dgate
        assert torch.equal(wide[..., 16:], expected.gate)
    assert bool((wide[..., :16] == 7).all())


@needs_compiler
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("keep_every", [8, 32])
@pytest.mark.parametrize(
    ("dtype", "optional"), [(torch.float32, OPTIONAL), (torch.bfloat16, OPTIONAL), (torch.float16, ())], ids=str
)
def test_sequences_one_after_the_other_are_scanned_as_apart(dtype, optional, keep_every):
    arguments = scan_arguments((2, 88, 16, 16), dtype, optional)
    apart = {n: t.reshape(16, 11, -1) if t.ndim == 3 else t for n, t in arguments.items()}
    results = []
    for given, order, restart_every in ((apart, None, 0), (arguments, torch.arange(88), 11)):
        inputs = [*(given.get(n) for n in ("u", "delta", "A", "B", "C", *OPTIONAL)), order]
        output, states = direct.forward(*inputs, keep_every, restart_every=restart_every)
        options = {"restart_every": restart_every, "deterministic": True, "want_output": True}
        found = direct.backward(given["delta"], *inputs, states, **options)
        results.append([output, *(gradient for gradient in found if gradient is not None)])
    for separate, together in zip(*results, strict=True):
        separate, together = separate.float().flatten(), together.float().flatten()
        assert (separate - together).norm() <= TOLERANCES[dtype] * separate.norm()


def test_scan_states_what_it_lacks():
    with pytest.raises(UserError, match="float64; use backend 'cpu'"):
        cuda.run(**make_arguments((1, 2, 3, 4), dtype=torch.float64))
    with pytest.raises(UserError, match="64 states, got 65"):
        cuda.run(**make_arguments((1, 2, 3, 65)))


def test_chunks_fill_the_gpu_and_cover_the_path():
    assert layout.chunks_for(384, 128, 132, 3) == (128, 1)
    assert layout.chunks_for(48, 7, 132, 3) == (7, 1)
    for num_blocks, tiles in ((48, 32), (48, 1201), (1, 8), (190, 9), (96, 11)):
        chunk_tiles, num_chunks = layout.chunks_for(num_blocks, tiles, 132, 3)
        assert chunk_tiles * (num_chunks - 1) < tiles <= chunk_tiles * num_chunks
        assert num_blocks * num_chunks <= 132 * 3


def test_pieces_of_chunks_fill_the_gpu_twice():
    assert layout.pieces_for(96, 128, 4, 132) == 3
    assert layout.pieces_for(48, 47, 11, 132) == 2
    assert layout.pieces_for(48, 512, 1, 132) == 22
    assert layout.pieces_for(1, 40, 2, 132) == 5  # none shorter than 8 tiles


def test_blocks_fit_into_the_shared_memory_of_an_a100():
    sizes = [
        one.shared_bytes(size, backward) for one in layout.LAYOUTS for size in (2, 4) for backward in (False, True)
    ]
    assert max(sizes) <= 163 * 1024


# ------------------------------------------------------------------------------------------ convolution, emulated
@needs_compiler
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *(((2, 70, 40, 4), dtype) for dtype in TOLERANCES),
        *((shape, torch.float32) for shape in [(1, 3, 5, 8), (1, 1, 8, 1)]),
    ],
    ids=str,
)
@pytest.mark.parametrize(("activation", "few_rows"), [("silu", 0), (None, 0), ("silu", 4096)])
def test_convolution(dtype, shape, activation, few_rows, monkeypatch):
    monkeypatch.setattr(conv_cuda, "FEW_ROWS", few_rows)
    num_rows, num_tokens, num_channels, num_taps = shape
    generator = torch.Generator().manual_seed(0)
    normal = functools.partial(torch.randn, generator=generator)
    order = random_order(num_tokens) if activation else None
    x = normal(num_rows, num_tokens, 2 * num_channels).to(dtype).chunk(2, -1)[1]
    arguments = {"x": x, "weight": normal(num_channels, num_taps), "bias": normal(num_channels)}
    if activation is None:
        del arguments["bias"]

    def run(function, x, weight, bias=None):
        return function(x, weight, bias, order, activation)

    errors = relative_errors(
        functools.partial(run, conv_cuda.run), functools.partial(run, conv._run_reference), arguments
    )
    assert max(errors.values()) < TOLERANCES[dtype], errors


@pytest.mark.parametrize(
    ("shape", "forward", "backward"),
    [
        ((32, 1024, 1664), 32, 172),
        ((32, 1024, 1536), 32, 172),
        ((1, 1024, 1536), 8, 8),
        ((2, 16_384, 1536), 32, 152),
        ((1024, 16, 1536), 16, 16),
        ((2048, 2000, 1536), 32, 512),
        ((1, 2**22, 8), 128, 512),
    ],
    ids=str,
)
def test_chunks_of_the_convolution(shape, forward, backward, monkeypatch):
    monkeypatch.setattr(conv_cuda, "num_multiprocessors", lambda device: 132)
    x = torch.empty(shape, dtype=torch.bfloat16, device="meta")
    for division, expected in ((conv_cuda._forward_division(x), forward), (conv_cuda.BACKWARD, backward)):
        chunk_rows = conv_cuda._chunk_rows(x, division.vector_bytes // 2, division)
        assert chunk_rows == expected
        assert -(-shape[1] // chunk_rows) <= nvrtc.LARGEST_GRID


@needs_compiler
@pytest.mark.usefixtures("emulated")
def test_convolution_opcheck():
    leaves = (torch.randn(1, 5, 8).requires_grad_(), torch.randn(8, 4).requires_grad_(), None, random_order(5), True)
    torch.library.opcheck(conv_cuda.conv_forward, leaves)
    plain = (leaves[0].detach(), leaves[1].detach(), *leaves[2:])
    torch.library.opcheck(conv_cuda.conv_backward, (torch.ones(1, 5, 8), *plain))


@needs_compiler
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("width", [16, 5])
def test_gradient_of_the_convolution_is_written_where_it_is_told(width):
    x, dout = torch.randn(2, 2, 20, width).bfloat16()
    parameters = (torch.randn(width, 4), None, random_order(20), True)
    expected = conv_cuda.convolve_backward(dout, x, *parameters)
    wide = torch.full((2, 20, 2 * width), 7.0, dtype=torch.bfloat16)
    found = conv_cuda.convolve_backward(dout, x, *parameters, dx=wide[..., :width])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(wide[..., :width], expected[0])
    assert bool((wide[..., width:] == 7).all())


def test_convolution_states_what_it_lacks():
    with pytest.raises(UserError, match="8 taps and no float64, got 9 taps"):
        conv_cuda.run(torch.zeros(1, 2, 3), torch.zeros(3, 9), None, None, "silu")


# ------------------------------------------------------------------------------------------------------ on a GPU
@needs_gpu
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", [(2, 1, 40, 16), (2, 63, 1536, 16), (1, 1000, 72, 16), (2, 130, 40, 64)], ids=str)
def test_scan_on_the_gpu(shape, dtype):
    arguments = {n: t.cuda() for n, t in scan_arguments(shape, dtype).items()}
    for order in (None, random_order(shape[1]).cuda()):
        errors = scan_errors(arguments, order)
        assert max(errors.values()) < max(TOLERANCES[dtype], 1e-5), errors


@needs_gpu
def test_both_ops_on_the_gpu_compile_replay_and_repeat():
    arguments, order = {n: t.cuda() for n, t in scan_arguments((2, 100, 64, 16)).items()}, random_order(100).cuda()
    weight = torch.linspace(-1, 1, 256, device="cuda").view(64, 4)

    def mixer(u, **rest):
        u = conv.causal_conv1d(u, weight, visit_order=order, backend="cuda")
        return selective_scan(u, **rest, visit_order=order, backend="cuda", deterministic=True)

    results = []
    for run in (mixer, mixer, torch.compile(mixer, fullgraph=True)):
        leaves = {n: t.detach().requires_grad_() for n, t in arguments.items()}
        results.append([*torch.autograd.grad(run(**leaves).square().sum(), list(leaves.values()))])
    assert all(torch.equal(a, b) for a, b in zip(*results[:2], strict=True))
    for eager, compiled in zip(results[0], results[2], strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
    graph, expected = torch.cuda.CUDAGraph(), mixer(**arguments)
    with torch.cuda.graph(graph):
        captured = mixer(**arguments)
    graph.replay()
    assert torch.equal(captured, expected)
