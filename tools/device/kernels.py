"""Checks the CUDA kernels against float64 and times them on the GPU at hand: python tools/device/kernels.py --help.

Prints a table, and writes all numbers as JSON. Times nothing while a check fails.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import math
import statistics
import time
from pathlib import Path
from unittest import mock

import torch
from torch.nn import functional as F

from zigma_pl.nn.mixer import MambaMixer
from zigma_pl.ops import causal_conv1d as convolution
from zigma_pl.ops import causal_conv1d_cuda as conv_cuda
from zigma_pl.ops import nvrtc
from zigma_pl.ops.selective_scan import cpu, cuda, direct, launch
from zigma_pl.ops.selective_scan import layout as layouts
from zigma_pl.scan.paths import visit_order

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
SHAPES = [(8, 4096), (32, 1024), (1, 1024), (1, 4096), (1, 16384), (1, 38416)]
ROW_NAMES = ("u", "delta", "B", "C", "gate")


def scan_arguments(shape, dtype, seed=0, optional=True, strided=True):
    """Inputs as a mixer's projections give them: u and gate halves of one tensor, B and C columns of another."""
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
    """Inputs as a new mixer of width 768 makes them of random tokens, its channels sorted by their step sizes."""
    torch.manual_seed(0)
    mixer = MambaMixer(768).cuda()
    seen = {}

    def scan(u, delta, A, B, C, **rest):
        seen.update(u=u, delta=delta, A=A, B=B, C=C, **{n: rest[n] for n in ("skip", "gate", "delta_bias")})
        return u

    with mock.patch("zigma_pl.nn.mixer.selective_scan", scan), torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        mixer(torch.randn(num_rows, num_tokens, 768, device="cuda"), order)
    return seen


def random_order(num_tokens, seed=0):
    """A random permutation on the GPU."""
    return torch.randperm(num_tokens, generator=torch.Generator().manual_seed(seed)).int().cuda()


def output_and_gradients(run, arguments, double=False):
    """Name -> output or gradient, for fixed weights of the output's entries."""
    leaves = {n: (t.double() if double else t).detach().requires_grad_() for n, t in arguments.items()}
    out = run(**leaves)
    weights = torch.linspace(-1e3, 1e3, out.numel(), dtype=torch.float64, device="cuda").cos().view(out.shape)
    gradients = torch.autograd.grad(out, list(leaves.values()), weights.to(out))
    return {"output": out.detach(), **dict(zip(leaves, gradients, strict=True))}


def errors_of(run, exact, arguments):
    """Name -> (largest error over the largest entry, norm of the error over the norm)."""
    expected = output_and_gradients(exact, arguments, double=True)
    tested = output_and_gradients(run, arguments)
    result = {}
    for name, reference in expected.items():
        difference = tested[name].double() - reference
        result[name] = (
            float(difference.abs().max() / reference.abs().max().clamp_min(1e-300)),
            float(difference.norm() / reference.norm().clamp_min(1e-300)),
        )
    return result


def check_scan(failures, shape, dtype, order, **options):
    """Compares one case with float64; appends to failures."""
    deterministic, chunks = options.pop("deterministic", False), options.pop("chunks", None)
    arguments = scan_arguments(shape, dtype, **options)
    run = functools.partial(cuda.run, visit_order=order, deterministic=deterministic)
    exact = functools.partial(cpu.run, visit_order=order)
    chosen = launch.chunks_for
    if chunks:
        launch.chunks_for = lambda blocks, tiles, *_: (chunks, -(-tiles // chunks))
    try:
        errors = errors_of(run, exact, arguments)
    finally:
        launch.chunks_for = chosen
    worst = max(e[0] for e in errors.values())
    line = f"{shape} {str(dtype)[6:]} {options} det={deterministic} chunks={chunks} worst {worst:.1e}"
    good = worst < TOLERANCES[dtype]  # NaN never passes
    print("ok  " if good else "FAIL", line, flush=True)
    if not good:
        failures.append((line, {n: [f"{x:.1e}" for x in e] for n, e in errors.items()}))
        print(failures[-1][1])


def check_all(orders):
    """Lengths, widths, numbers of states, dtypes, orders and chunks of both ops; returns the failures."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills every fresh tensor with NaN
    failures = []
    for dtype in TOLERANCES:
        for num_tokens in (1, 63, 1000):
            check_scan(failures, (2, num_tokens, 1536, 16), dtype, random_order(num_tokens))
        check_scan(failures, (2, 256, 1000, 16), dtype, random_order(256))
        check_scan(failures, (2, 256, 77, 16), dtype, None, strided=False)
        check_scan(failures, (2, 256, 96, 16), dtype, None, optional=False, deterministic=True)
        for num_states in (4, 5, 8, 32, 64):
            check_scan(failures, (2, 130, 200, num_states), dtype, random_order(130), chunks=2)
            check_scan(failures, (2, 130, 200, num_states), dtype, random_order(130))
    for order in orders:
        check_scan(failures, (2, 1024, 96, 16), torch.float32, order)
    check_scan(failures, (2, 4096, 1536, 16), torch.float32, random_order(4096))
    check_scan(failures, (8, 4096, 1536, 16), torch.bfloat16, random_order(4096))
    check_scan(failures, (1, 38416, 96, 16), torch.float32, random_order(38416))
    check_scan(failures, (1, 38416, 96, 16), torch.bfloat16, random_order(38416), chunks=1)
    for dtype in TOLERANCES:
        check_convolution(failures, dtype)
    check_determinism(failures)
    torch.use_deterministic_algorithms(False)
    return failures


def check_small():
    """Every kernel on little data, for compute-sanitizer; PYTORCH_NO_CUDA_MEMORY_CACHING=1 lets it see every bound."""
    failures = []
    for dtype in TOLERANCES:
        for shape, options in itertools.product(
            [(2, 70, 40, 16), (1, 33, 37, 5), (1, 40, 24, 32), (1, 40, 24, 64)],
            [{}, {"chunks": 1}, {"deterministic": True, "optional": False}],
        ):
            check_scan(failures, shape, dtype, random_order(shape[1]), **options)
        check_convolution(failures, dtype)
    return failures


def check_convolution(failures, dtype):
    """Compares the convolution with its definition."""
    for (num_rows, num_tokens, num_channels), taps in itertools.product(
        [(2, 1000, 1536), (2, 63, 77), (1, 1, 8)], (4, 3)
    ):
        x = torch.randn(num_rows, num_tokens, 2 * num_channels, device="cuda").to(dtype).chunk(2, -1)[0]
        arguments = {
            "x": x,
            "weight": torch.randn(num_channels, taps, device="cuda"),
            "bias": torch.randn(num_channels, device="cuda"),
        }
        order = random_order(num_tokens)

        def run(x, weight, bias, order=order):
            return conv_cuda.run(x, weight, bias, order, "silu")

        def exact(x, weight, bias, order=order):
            return convolution._run_reference(x, weight, bias, order, "silu")

        worst = max(e[0] for e in errors_of(run, exact, arguments).values())
        good = worst < TOLERANCES[dtype]
        print(
            "ok  " if good else "FAIL", "conv", tuple(x.shape), taps, str(dtype)[6:], f"worst {worst:.1e}", flush=True
        )
        if not good:
            failures.append(("conv", dtype, worst))


def check_determinism(failures):
    """Compares the bits of two runs."""
    arguments, order = scan_arguments((4, 512, 1536, 16), torch.bfloat16), random_order(512)
    run = functools.partial(cuda.run, visit_order=order, deterministic=True)
    first, second = (output_and_gradients(run, arguments) for _ in range(2))
    if not all(torch.equal(first[n], second[n]) for n in first):
        failures.append("two deterministic runs differ")


# ----------------------------------------------------------------------------------------------------------- timing
def median_ms(call, seconds=0.25, repeats=7):
    """Median over `repeats` batches of replays of a CUDA graph of the call."""
    call()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            call()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    graph.replay()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    graph.replay()
    torch.cuda.synchronize()
    count = max(3, min(400, int(seconds / repeats / (time.perf_counter() - begin))))
    times = []
    for _ in range(repeats):
        start.record()
        for _ in range(count):
            graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / count)
    return statistics.median(times)


def time_scan(arguments, order=None, keeps=(direct.KEEP_EVERY,), deterministic=True):
    """Milliseconds of both directions, and for distances between kept states."""
    inputs = [*(arguments.get(n) for n in ("u", "delta", "A", "B", "C", "skip", "gate", "delta_bias")), order]
    times = {"inference": median_ms(lambda: direct.forward(*inputs, 0))}
    for keep in keeps:
        out, states = direct.forward(*inputs, keep)
        dout = torch.randn_like(out)
        suffix = "" if keep == direct.KEEP_EVERY else f" {keep}"
        times["forward" + suffix] = median_ms(lambda keep=keep: direct.forward(*inputs, keep))
        times["backward" + suffix] = median_ms(lambda: direct.backward(dout, *inputs, states))  # noqa: B023
    if deterministic:
        times["deterministic"] = median_ms(lambda: direct.backward(dout, *inputs, states, deterministic=True))
        times["backward, output"] = median_ms(lambda: direct.backward(dout, *inputs, states, want_output=True))
    return times


def time_mixers(indices, shapes, keeps, results):
    """Times the scan as a new mixer calls it along zigzags, and what its first pass takes where the path is cut."""
    for index, (num_rows, num_tokens) in itertools.product(indices, shapes):
        side = math.isqrt(num_tokens)
        order = torch.from_numpy(visit_order("zigzag", side, side, index=index)).cuda()
        arguments = mixer_arguments(num_rows, num_tokens, order)
        times = time_scan(arguments, order, keeps, deterministic=False)
        with without_first_pass():
            rest = time_scan(arguments, order, keeps, deterministic=False)
        results[f"zigzag {index} {num_rows} x {num_tokens}"] = {"whole": times, "without first pass": rest}
        line = " ".join(f"{n} {t:.3f} (first pass {t - rest[n]:.3f})" for n, t in times.items())
        print(f"zigzag {index} {num_rows} x {num_tokens}", line, flush=True)


@contextlib.contextmanager
def without_first_pass():
    """Leaves out the kernels that find what the chunks of a path leave behind, which makes results wrong."""
    kernel = launch.kernel

    def kernel_or_nothing(name, *kinds):
        return kernel(name, *kinds) if not name.startswith("scan_chunk") else lambda grid, fields: None

    with mock.patch.object(launch, "kernel", kernel_or_nothing):
        yield


def time_convolution(shape, order):
    """Milliseconds of both directions of the convolution."""
    x = torch.randn(*shape[:2], 2 * shape[2], device="cuda").bfloat16().chunk(2, -1)[0]
    weight, bias = torch.randn(shape[2], 4, device="cuda"), torch.randn(shape[2], device="cuda")
    dout = torch.randn(shape, device="cuda").bfloat16()
    return {
        "conv forward": median_ms(lambda: conv_cuda.conv_forward(x, weight, bias, order, True)),
        "conv backward": median_ms(lambda: conv_cuda.conv_backward(dout, x, weight, bias, order, True)),
    }


def parse_variant(text):
    """steps=4,PADDED=1,... as (changes of the layout for N = 16, macros), the latter upper case."""
    items = {k: int(v) for k, v in (item.split("=") for item in text.split(",") if item)}
    changes = {k: v for k, v in items.items() if k.islower()}
    macros = tuple((k, v) for k, v in items.items() if not k.islower())
    return dataclasses.replace(layouts.layout_for(16), **changes), macros


@contextlib.contextmanager
def variant(text):
    """Puts a layout in the place of the one for as many states, and adds macros to what is compiled."""
    layout, macros = parse_variant(text)
    known, load = layouts.LAYOUTS, nvrtc.load
    layouts.LAYOUTS = tuple(layout if one.states == layout.states else one for one in known)
    nvrtc.load = lambda sources, name, options, **rest: load(sources, name, options + macros, **rest)
    launch.kernel.cache_clear()
    try:
        yield
    finally:
        layouts.LAYOUTS, nvrtc.load = known, load
        launch.kernel.cache_clear()


def time_variants(texts, shapes, keeps, results):
    """Checks and times variants for N = 16."""
    for text in texts:
        with variant(text):
            try:
                failures = []
                check_scan(failures, (2, 100, 200, 16), torch.bfloat16, random_order(100))
                for shape in () if failures else shapes:
                    order = random_order(shape[1])
                    times = time_scan(bfloat16_arguments(shape), order, keeps, deterministic=False)
                    results[f"{text or 'default'} {shape}"] = times
                    line = " ".join(f"{n} {t:.3f}" for n, t in times.items())
                    print(f"{text or 'default':40s} {shape!s:12s}", line, flush=True)
            except Exception as error:
                print("FAIL", text, error)


def bfloat16_arguments(shape):
    """Inputs of (B, L) rows of 1,536 channels with 16 states."""
    return scan_arguments((*shape, 1536, 16), torch.bfloat16)


def profile():
    """Both directions once at 8 x 4,096."""
    arguments, order = scan_arguments((8, 4096, 1536, 16), torch.bfloat16), random_order(4096)
    output_and_gradients(functools.partial(cuda.run, visit_order=order), arguments)
    torch.cuda.synchronize()


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--check-small", action="store_true")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--variants", nargs="*", default=[], help="steps=4,MACRO=1,... to be compared")
    parser.add_argument("--keeps", nargs="*", type=int, default=[direct.KEEP_EVERY], help="rows between kept states")
    parser.add_argument("--shapes", nargs="*", type=lambda t: tuple(map(int, t.split(","))), default=SHAPES[:2])
    parser.add_argument("--mixers", nargs="*", type=int, default=[], help="zigzags along which a new mixer is timed")
    parser.add_argument("--out", type=Path, default=Path("kernels.json"))
    parser.add_argument("--profile", action="store_true", help="run each kernel once at 8 x 4,096, for a profiler")
    options = parser.parse_args()
    if options.profile:
        profile()
        return
    results = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    print(results, cuda.available())
    if options.check:
        orders = [torch.from_numpy(visit_order("zigzag", 32, 32, index=i)).cuda() for i in range(8)]
        begin = time.perf_counter()
        failures = check_all(orders)
        print("checks took", time.perf_counter() - begin, "s;", len(failures), "failures")
        if failures:
            raise SystemExit(f"checks failed: {failures}")
    if options.check_small:
        failures = check_small()
        if failures:
            raise SystemExit(f"checks failed: {failures}")
    if options.time:
        for shape in SHAPES:
            order = random_order(shape[1])
            times = time_scan(bfloat16_arguments(shape), order) | time_convolution((*shape, 1536), order)
            times["raster forward"] = time_scan(bfloat16_arguments(shape), deterministic=False)["forward"]
            results[str(shape)] = times
            print(shape, " ".join(f"{n} {t:.3f}" for n, t in times.items()), flush=True)
    time_variants(options.variants, options.shapes, options.keeps, results)
    time_mixers(options.mixers, options.shapes, options.keeps, results)
    options.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
