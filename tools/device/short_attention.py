"""Compare attention to few keys with float64, and time it and PyTorch's: python tools/device/short_attention.py --help.

Prints tables and writes all numbers as JSON.
"""

import argparse
import functools
import itertools
import json
import statistics
import time
from pathlib import Path
from unittest import mock

import torch
from kernels import median_ms

from zigma_pl.ops.short_attention import attend, cuda, run_reference

TOLERANCES = {torch.bfloat16: 1e-2, torch.float16: 2e-3}
CHECKED = [  # B, L, T, H, P
    *((32, 1024, 77, 8, 64), (32, 1024, 80, 8, 64), (8, 4096, 77, 8, 64), (3, 1000, 65, 5, 64), (70, 130, 80, 8, 64)),
    *((2, 1, 1, 1, 64), (2, 63, 8, 3, 64), (2, 4097, 128, 3, 64), (5, 200, 77, 8, 32), (1, 16384, 33, 8, 64)),
]
SMALL = [(2, 1, 1, 1, 64), (2, 63, 8, 3, 64), (2, 300, 77, 2, 64), (2, 40, 128, 1, 32)]  # for compute-sanitizer
SHAPES = [(32, 1024, 80), (32, 1024, 77), (8, 4096, 80), (64, 1024, 80), (4, 1024, 80), (32, 1024, 32), (32, 1024, 128)]
NUM_HEADS, HEAD_DIM = 8, 64
IMPLEMENTATIONS = {"kernels": attend, "PyTorch": run_reference}


def make_inputs(sizes, dtype, device):
    """Return query, key and value as views of projections, a bias that excludes 0 to T keys, and dout."""
    batch_size, num_rows, num_tokens, num_heads, head_dim = sizes
    torch.manual_seed(0)
    lengths = (num_rows, num_tokens, num_tokens, num_rows)
    tensors = [torch.randn(batch_size, length, num_heads * head_dim, device=device).to(dtype) for length in lengths]
    query, key, value, dout = (t.unflatten(2, (num_heads, head_dim)) for t in tensors)
    num_valid = (torch.arange(batch_size, device=device) * 7 % (num_tokens + 1))[:, None]
    bias = torch.where(torch.arange(num_tokens, device=device) < num_valid, 0.0, -30_000.0)
    return query, key, value, bias, dout


def output_and_gradients(run, query, key, value, bias, dout):
    """Return the output and the gradients of query, key and value."""
    leaves = [t.detach().requires_grad_() for t in (query, key, value)]
    out = run(*leaves, bias)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


# ------------------------------------------------------------------------------------------------------------- checks
def check(failures, sizes, dtype, biased, device):
    """Compare output and gradients with float64, and with a second run."""
    query, key, value, bias, dout = make_inputs(sizes, dtype, device)
    rows, bias = (query, key, value), bias if biased else None
    supported = device == "cpu" or cuda.supports(*rows)
    tested, again = (output_and_gradients(attend, *rows, bias, dout) for _ in range(2))
    exact = output_and_gradients(run_reference, *(t.double() for t in rows), bias, dout.double())
    errors = [float((a.double() - b).norm() / b.norm().clamp_min(1)) for a, b in zip(tested, exact, strict=True)]
    same = all(map(torch.equal, tested, again))
    failed = not supported or not same or not all(e <= TOLERANCES[dtype] for e in errors)  # also if one is NaN
    name = f"{sizes} {str(dtype).removeprefix('torch.')} {'bias' if biased else 'no bias'}"
    print(f"{name:45s} {' '.join(f'{e:.1e}' for e in errors)}{' FAILED' if failed else ''}", flush=True)
    if failed:
        failures.append({"case": name, "errors": errors, "supported": supported, "deterministic": same})


def check_all(device, checked=CHECKED):
    """Check all sizes; return the failures."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills uninitialised memory with NaN
    failures = []
    for sizes, biased in itertools.product(checked, (True, False)):
        check(failures, sizes, torch.bfloat16, biased, device)
    for sizes in checked[::4]:
        check(failures, sizes, torch.float16, True, device)
    torch.use_deterministic_algorithms(False)
    return failures


# ------------------------------------------------------------------------------------------------------------- timing
def eager_ms(call, repeats=20):
    """Return the median milliseconds of a call, with the gaps between launches."""
    times = []
    for _ in range(repeats + 5):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        times.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in times[5:])


replayed_ms = functools.partial(median_ms, seconds=0.05, repeats=5)


def time_shape(shape, biased):
    """Return milliseconds by implementation: forward, and forward + backward, replayed and without a graph."""
    query, key, value, bias, dout = make_inputs((*shape, NUM_HEADS, HEAD_DIM), torch.bfloat16, "cuda")
    inputs = (query, key, value, bias if biased else None)
    times = {}
    for name, run in IMPLEMENTATIONS.items():
        forward = functools.partial(run, *inputs)
        both = functools.partial(output_and_gradients, run, *inputs, dout)
        times |= {f"{name} forward": replayed_ms(forward), f"{name} both": replayed_ms(both)}
        times |= {f"{name} forward, eager": eager_ms(forward), f"{name} both, eager": eager_ms(both)}
    return times


def time_parts(shape):
    """Return milliseconds of each kernel for numbers of parts of a sequence, by default and otherwise."""
    query, key, value, bias, dout = make_inputs((*shape, NUM_HEADS, HEAD_DIM), torch.bfloat16, "cuda")
    norms = cuda.forward(query, key, value, bias, True)[1]
    passes = {
        "forward": functools.partial(cuda.forward, query, key, value, bias, True),
        "backward": functools.partial(cuda.backward, dout, query, key, value, bias, norms),
    }
    times = {name: replayed_ms(call) for name, call in passes.items()}
    for parts in (1, 2, 3, 4, 8):
        with mock.patch.object(cuda, "num_parts", lambda *_, parts=parts: parts):
            times |= {f"{name} {parts}": replayed_ms(call) for name, call in passes.items()}
    return times


def show(results, key, times):
    """Print one line of a table, and keep the numbers."""
    results[key] = times
    print(f"{key:25s}", ", ".join(f"{name} {ms:.4f}" for name, ms in times.items()), flush=True)


def main():
    """Check, then time unless a check failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="cpu: only check PyTorch's attention, with small inputs")
    parser.add_argument("--check-small", action="store_true", help="only check small inputs, for compute-sanitizer")
    parser.add_argument("--out", type=Path, default=Path("short_attention.json"))
    options = parser.parse_args()
    if options.device == "cpu" or options.check_small:
        failures = check_all(options.device, SMALL)
        print(len(failures), "failures", failures)
        raise SystemExit(bool(failures))
    begin = time.perf_counter()
    results = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "failures": check_all("cuda")}
    print(results, f"{time.perf_counter() - begin:.0f} s", flush=True)
    options.out.write_text(json.dumps(results, indent=1))
    if results["failures"]:
        raise SystemExit("checks failed")
    for shape in SHAPES[:3]:
        show(results, f"{shape} kernels", time_parts(shape))
    for shape, biased in itertools.product(SHAPES, (True, False)):
        show(results, f"{shape} {'bias' if biased else 'no bias'}", time_shape(shape, biased))
    options.out.write_text(json.dumps(results, indent=1))
    print(f"{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
