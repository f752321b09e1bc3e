"""Compare the CUDA kernels of SSD with float64 and time them on this GPU: python tools/device/ssd.py --help.

Prints tables and writes all numbers as JSON. Kernels are compiled in parallel before the first check.
"""

import argparse
import concurrent.futures
import functools
import itertools
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import torch
from inputs import bfloat16_arguments, random_order
from kernels import median_ms
from ssd_checks import NAMES, OPTIONAL, SIZES, TOLERANCES, arguments_of, check_all, check_small, pieces
from ssd_variants import VARIANTS, WITHOUT_GATE, compare, time_ssd, variant

from zigma_pl.ops import nvrtc
from zigma_pl.ops.selective_scan import cuda as mamba1
from zigma_pl.ops.selective_scan import direct
from zigma_pl.ops.ssd import cuda, launch, mamba_ssm

SHAPES = [(32, 1024), (8, 4096), (1, 1024), (1, 4096), (1, 16384), (1, 38416)]


# ------------------------------------------------------------------------------------------------------------ timing
def time_op(shape):
    """Return milliseconds of the kernels of both passes, replayed, and of the op with autograd without a graph."""
    arguments, order = arguments_of(shape, torch.bfloat16), random_order(shape[1])
    inputs = [arguments[name] for name in NAMES]
    out, states = cuda.forward(*inputs, order, True)
    dout = torch.randn_like(out)
    return time_ssd(shape) | {
        "deterministic": median_ms(lambda: cuda.backward(dout, *inputs, order, states, True), 0.1, 5),
        "autograd": eager_ms(functools.partial(cuda.run, visit_order=order), arguments, dout),
    }


def time_mamba1(shape):
    """Return the same milliseconds of the selective scan with as many channels and 16 states."""
    arguments, order = bfloat16_arguments(shape), random_order(shape[1])
    inputs = [*(arguments[n] for n in ("u", "delta", "A", "B", "C", "skip", "gate", "delta_bias")), order]
    out, states = direct.forward(*inputs)
    return {
        "forward": median_ms(lambda: direct.forward(*inputs), 0.1, 5),
        "backward": median_ms(lambda: direct.backward(out, *inputs, states), 0.1, 5),
        "autograd": eager_ms(functools.partial(mamba1.run, visit_order=order), arguments, torch.randn_like(out)),
    }


def eager_ms(run, arguments, dout, repeats=20):
    """Return the median milliseconds of forward + backward with autograd, with the gaps between launches."""
    leaves = leaves_of(arguments)
    times = []
    for _ in range(repeats + 5):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        gradients(run, leaves, dout)
        end.record()
        times.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in times[5:])


def leaves_of(arguments):
    """Return the arguments as leaves that require gradients."""
    return {name: t.detach().requires_grad_() for name, t in arguments.items()}


def gradients(run, leaves, dout):
    """Run forward and backward pass."""
    return torch.autograd.grad(run(**leaves), list(leaves.values()), dout)


def show(results, key, times):
    """Print one line of a table, and keep the numbers."""
    results[key] = times
    print(f"{key:60s}", " ".join(f"{name} {ms:.3f}" for name, ms in times.items()), flush=True)


PIECES = (1, 2, 3, 4, 6)


def time_pieces(results):
    """Time numbers of pieces at all shapes, and other sizes."""
    for shape in SHAPES[1:]:
        for number in PIECES if shape[0] > 1 else (4, 8, 16, 32):
            if number * 256 <= shape[1]:
                with pieces(number):
                    show(results, f"{shape} pieces {number}", time_ssd(shape))
    for sizes in ((24, 64, 128), (12, 128, 64), (48, 32, 64)):
        show(results, f"{SHAPES[0]} heads, channels, states {sizes}", time_ssd(SHAPES[0], sizes))


def time_kernels(results, shape):
    """Print the time of each kernel of one forward and backward pass by PyTorch's profiler."""
    arguments, order = arguments_of(shape, torch.bfloat16), random_order(shape[1])
    leaves = {name: t.detach().requires_grad_() for name, t in arguments.items()}
    dout = torch.randn_like(arguments["x"])
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(5):
            torch.autograd.grad(cuda.run(**leaves, visit_order=order), list(leaves.values()), dout)
        torch.cuda.synchronize()
    events = [e for e in profile.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    for event in sorted(events, key=lambda e: -e.self_device_time_total):
        show(results, f"{shape} kernel {event.key[:40]}", {"ms": event.self_device_time_total / 5000})


# ------------------------------------------------------------------------------------------------------- compilation
def compile_all(cases):
    """Compile in parallel what the cases load; each is a function that launches kernels on tensors without data."""
    jobs = set()

    def record(sources, name, options, **_):
        jobs.add(("\n".join(path.read_text() for path in sources), options))
        return lambda *_: None

    with mock.patch.object(nvrtc, "load", record):
        for case in cases:
            launch.kernel.cache_clear()
            case()
    launch.kernel.cache_clear()
    architecture = "sm_{}{}".format(*torch.cuda.get_device_capability())
    longest_first = sorted(jobs, key=lambda job: (dict(job[1])["ROW_KIND"], -len(job[0])))
    with concurrent.futures.ProcessPoolExecutor(mp_context=multiprocessing.get_context("fork")) as pool:
        list(pool.map(compile_job, [(*job, architecture) for job in longest_first]))
    return len(jobs)


def compile_job(job):
    """Compile one kernel into the cache."""
    nvrtc.compile_cached(*job)


def launch_both(sizes=SIZES, dtype=torch.bfloat16, optional=OPTIONAL, changes=None, shape=(2, 64), **options):
    """Launch both passes, the backward pass with and without atomic additions."""
    arguments = arguments_of(shape, dtype, sizes, optional=optional, **options)
    leaves = {name: t.detach().requires_grad_() for name, t in arguments.items()}
    with variant(changes or {}):
        for deterministic in (False, True):
            out = cuda.run(**leaves, deterministic=deterministic)
            torch.autograd.grad(out, list(leaves.values()), out)
        cuda.forward(*(arguments.get(name) for name in NAMES), None, False)


def cases():
    """Return functions that launch all kernels that the checks and timings use."""
    few = (4, 64, 64)
    found = [functools.partial(launch_both, few, dtype) for dtype in TOLERANCES]
    found += [functools.partial(launch_both, few, dtype, decay="none") for dtype in (torch.bfloat16, torch.float32)]
    found += [functools.partial(launch_both, sizes) for sizes in ((4, 32, 16), (4, 128, 64), (4, 64, 128), (4, 32, 64))]
    found.append(functools.partial(launch_both, few, optional=()))
    return [*found, launch_both]


def cases_of_variants():
    """Return functions that launch all kernels that the checks and timings of variants use."""
    found = [functools.partial(launch_both, changes=c) for c in VARIANTS.values()]
    found += [functools.partial(launch_both, changes=c, decay="strong") for c in VARIANTS.values()]
    found += [functools.partial(launch_both, changes=c, optional=("skip", "dt_bias")) for _, c in WITHOUT_GATE]
    return found


# ------------------------------------------------------------------------------------------------------------- peers
def time_peers(results, path, seconds):
    """Time mamba_ssm's Triton kernels in a process of their own, since their tuning takes minutes."""
    path = path.with_name(f"{path.stem}_peers.json")
    command = [sys.executable, __file__, "--only-peers", "--out", str(path)]
    try:
        done = subprocess.run(command, timeout=seconds, capture_output=True, text=True)
        print(done.stdout, done.stderr[-500:] if done.returncode else "")
    except subprocess.TimeoutExpired:
        print(f"mamba_ssm: not done within {seconds} s")
    if path.is_file():
        results |= json.loads(path.read_text())


def only_peers(path):
    """Time mamba_ssm's Triton kernels, forward and backward, launched from Python and replayed, in raster order."""
    print("mamba_ssm:", mamba_ssm.available())
    results = {}
    for kind, shape in itertools.product(("autograd", "replayed"), SHAPES[:2]):
        arguments = arguments_of(shape, torch.bfloat16)
        dout = torch.randn_like(arguments["x"])
        if kind == "autograd":
            ms = eager_ms(mamba_ssm.run, arguments, dout)
        else:
            ms = median_ms(functools.partial(gradients, mamba_ssm.run, leaves_of(arguments), dout), 0.1, 5)
        show(results, f"mamba_ssm {shape}", {**results.get(f"mamba_ssm {shape}", {}), kind: ms})
        path.write_text(json.dumps(results, indent=1))


def compare_variants(results, out, begin):
    """Compile, check and time the variants, and write the results."""
    print("compiled", compile_all(cases_of_variants()), f"modules, {time.perf_counter() - begin:.0f} s", flush=True)
    try:
        results["failures"] = compare(results)
    finally:
        out.write_text(json.dumps(results, indent=1))
    print(len(results["failures"]), f"failures, {time.perf_counter() - begin:.0f} s", results["failures"], flush=True)


def main():
    """Read the command line, check, time and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-check", action="store_true")
    parser.add_argument("--check-small", action="store_true", help="only check small inputs, for compute-sanitizer")
    parser.add_argument("--no-time", action="store_true")
    parser.add_argument("--no-variants", action="store_true", help="do not time numbers of pieces and other sizes")
    parser.add_argument("--only-variants", action="store_true", help="only check and time variants of the kernels")
    parser.add_argument("--peers", type=int, metavar="SECONDS", default=0, help="time mamba_ssm for at most so long")
    parser.add_argument("--only-peers", action="store_true")
    parser.add_argument("--profile", action="store_true", help="run each kernel once at 32 x 1,024, for a profiler")
    parser.add_argument("--out", type=Path, default=Path("ssd.json"))
    options = parser.parse_args()
    if options.only_peers:
        only_peers(options.out)
        return
    if options.check_small:
        failures = check_small()
        print(len(failures), "failures", failures)
        raise SystemExit(bool(failures))
    if options.profile:
        launch_both(shape=SHAPES[0])
        return
    begin = time.perf_counter()
    results = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    print(results, cuda.available())
    if options.only_variants:
        compare_variants(results, options.out, begin)
        return
    print(
        "compiled",
        compile_all(cases()),
        f"modules, {time.perf_counter() - begin:.0f} s",
        flush=True,
    )
    results["failures"] = [] if options.no_check else check_all()
    print(len(results["failures"]), f"failures, {time.perf_counter() - begin:.0f} s", results["failures"], flush=True)
    options.out.write_text(json.dumps(results, indent=1))
    if not options.no_time:
        for shape in SHAPES:
            show(results, f"ssd {shape}", time_op(shape))
            show(results, f"selective scan {shape}", time_mamba1(shape))
        for shape in SHAPES[:2]:
            time_kernels(results, shape)
        options.out.write_text(json.dumps(results, indent=1))
        print(f"{time.perf_counter() - begin:.0f} s", flush=True)
    if not (options.no_time or options.no_variants):
        time_pieces(results)
    if options.peers:
        time_peers(results, options.out, options.peers)
    options.out.write_text(json.dumps(results, indent=1))
    print(f"{time.perf_counter() - begin:.0f} s")
    if results["failures"]:
        raise SystemExit(f"checks failed: {results['failures']}")


if __name__ == "__main__":
    main()
