"""Compare the CUDA kernels with float64 and time them on this GPU: python tools/device/kernels.py --help.

Prints a table and writes all numbers as JSON. Stops before timing if a check fails.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import statistics
import time
from pathlib import Path
from unittest import mock

import torch
from checks import check_all, check_scan, check_small, output_and_gradients
from inputs import bfloat16_arguments, mixer_arguments, random_order, zigzag_order

from zigma_pl.ops import causal_conv1d_cuda as conv_cuda
from zigma_pl.ops import nvrtc
from zigma_pl.ops.selective_scan import cuda, direct, launch
from zigma_pl.ops.selective_scan import layout as layouts

SHAPES = [(8, 4096), (32, 1024), (1, 1024), (1, 4096), (1, 16384), (1, 38416)]


def median_ms(call, seconds=0.25, repeats=7):
    """Return the median milliseconds of the call over `repeats` batches of replays of its CUDA graph."""
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
    """Return milliseconds of both directions, for each distance between the states that are kept for backward."""
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
    """Time the scan along zigzags on a new mixer's inputs, and the first pass over paths that are cut into chunks."""
    for index, (num_rows, num_tokens) in itertools.product(indices, shapes):
        order = zigzag_order(num_tokens, index)
        arguments = mixer_arguments(num_rows, num_tokens, order)
        times = time_scan(arguments, order, keeps, deterministic=False)
        with without_first_pass():
            rest = time_scan(arguments, order, keeps, deterministic=False)
        results[f"zigzag {index} {num_rows} x {num_tokens}"] = {"whole": times, "without first pass": rest}
        line = " ".join(f"{n} {t:.3f} (first pass {t - rest[n]:.3f})" for n, t in times.items())
        print(f"zigzag {index} {num_rows} x {num_tokens}", line, flush=True)


@contextlib.contextmanager
def without_first_pass():
    """Leave out the kernels that compute the states or adjoints at the chunks' ends; the results are wrong."""
    kernel = launch.kernel

    def kernel_or_nothing(name, *kinds):
        return kernel(name, *kinds) if not name.startswith("scan_chunk") else lambda grid, fields: None

    with mock.patch.object(launch, "kernel", kernel_or_nothing):
        yield


def time_convolution(shape, order):
    """Return milliseconds of both directions of the convolution."""
    x = torch.randn(*shape[:2], 2 * shape[2], device="cuda").bfloat16().chunk(2, -1)[0]
    weight, bias = torch.randn(shape[2], 4, device="cuda"), torch.randn(shape[2], device="cuda")
    dout = torch.randn(shape, device="cuda").bfloat16()
    return {
        "conv forward": median_ms(lambda: conv_cuda.conv_forward(x, weight, bias, order, True)),
        "conv backward": median_ms(lambda: conv_cuda.conv_backward(dout, x, weight, bias, order, True)),
    }


def parse_variant(text):
    """Parse "steps=4,PADDED=1,...": return the changed layout for N = 16 (lower case) and macros (upper case)."""
    items = {k: int(v) for k, v in (item.split("=") for item in text.split(",") if item)}
    changes = {k: v for k, v in items.items() if k.islower()}
    macros = tuple((k, v) for k, v in items.items() if not k.islower())
    return dataclasses.replace(layouts.layout_for(16), **changes), macros


@contextlib.contextmanager
def variant(text):
    """Replace the layout for this number of states and compile with additional macros."""
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
    """Check and time variants for N = 16."""
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


def profile():
    """Run both directions once at 8 x 4,096."""
    arguments, order = bfloat16_arguments((8, 4096)), random_order(4096)
    output_and_gradients(functools.partial(cuda.run, visit_order=order), arguments)
    torch.cuda.synchronize()


def main():
    """Read the command line, check, time and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--check-small", action="store_true")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--variants", nargs="*", default=[], help="variants to compare: steps=4,MACRO=1,...")
    parser.add_argument("--keeps", nargs="*", type=int, default=[direct.KEEP_EVERY], help="rows between kept states")
    parser.add_argument("--shapes", nargs="*", type=lambda t: tuple(map(int, t.split(","))), default=SHAPES[:2])
    parser.add_argument("--mixers", nargs="*", type=int, default=[], help="zigzags to time with a new mixer's inputs")
    parser.add_argument("--out", type=Path, default=Path("kernels.json"))
    parser.add_argument("--profile", action="store_true", help="run each kernel once at 8 x 4,096, for a profiler")
    options = parser.parse_args()
    if options.profile:
        profile()
        return
    results = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    print(results, cuda.available())
    if options.check:
        orders = [zigzag_order(1024, index) for index in range(8)]
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
