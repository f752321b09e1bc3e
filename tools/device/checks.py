"""Compare the CUDA kernels with float64 (lengths, widths, states, dtypes, orders and chunks), and two runs bitwise."""

import functools
import itertools
import math

import torch
from inputs import random_order, scan_arguments

from zigma_pl.ops import causal_conv1d as convolution
from zigma_pl.ops import causal_conv1d_cuda as conv_cuda
from zigma_pl.ops.selective_scan import cpu, cuda, launch

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def output_and_gradients(run, arguments, double=False):
    """Return the output and the gradients of its sum with fixed weights, which are the same in all dtypes, by name."""
    leaves = {n: (t.double() if double else t).detach().requires_grad_() for n, t in arguments.items()}
    out = run(**leaves)
    weights = torch.linspace(-1e3, 1e3, out.numel(), dtype=torch.float64, device="cuda").cos().bfloat16()
    gradients = torch.autograd.grad(out, list(leaves.values()), weights.view(out.shape).to(out))
    return {"output": out.detach(), **dict(zip(leaves, gradients, strict=True))}


def errors_of(run, exact, arguments):
    """Return by name: (largest error / largest entry, norm of the error / norm)."""
    expected = output_and_gradients(exact, arguments, double=True)
    tested = output_and_gradients(run, arguments)
    result = {}
    for name, reference in expected.items():
        difference = (tested[name].double() - reference).nan_to_num(nan=math.inf)  # max() may skip NaN
        result[name] = (
            float(difference.abs().max() / reference.abs().max().clamp_min(1e-300)),
            float(difference.norm() / reference.norm().clamp_min(1e-300)),
        )
    return result


def check_scan(failures, shape, dtype, order, **options):
    """Compare one case with float64; append to `failures`."""
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
    """Check lengths, widths, numbers of states, dtypes, orders and chunks of both ops; return the failures."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills uninitialised memory with NaN
    failures = []
    for dtype in TOLERANCES:
        for num_rows, num_tokens in ((16, 1), (2, 63), (2, 1000)):  # a few sums may all nearly cancel
            check_scan(failures, (num_rows, num_tokens, 1536, 16), dtype, random_order(num_tokens))
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
    """Run every kernel on small tensors, for compute-sanitizer.

    Set PYTORCH_NO_CUDA_MEMORY_CACHING=1, so that it detects every access out of bounds.
    """
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
    """Compare the convolution with its definition; append to `failures`."""
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
    """Check that two deterministic runs give the same bits; append to `failures`."""
    arguments, order = scan_arguments((4, 512, 1536, 16), torch.bfloat16), random_order(512)
    run = functools.partial(cuda.run, visit_order=order, deterministic=True)
    first, second = (output_and_gradients(run, arguments) for _ in range(2))
    if not all(torch.equal(first[n], second[n]) for n in first):
        failures.append("two deterministic runs differ")
