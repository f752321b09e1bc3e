"""Compare the kernels of norms, sums over rows, weights and attention to captions with float64.

python tools/device/row_checks.py [--small], with small tensors for compute-sanitizer.
"""

import argparse
import functools
import itertools

import torch
from checks import TOLERANCES, errors_of, output_and_gradients
from inputs import random_order
from short_attention import CHECKED, SMALL
from short_attention import check_all as check_attention

from zigma_pl.ops import column_sums, norms, scale_columns_cuda
from zigma_pl.ops.rms_norm import scale_columns_of_all
from zigma_pl.ops.rows import UnscaledRows, inverse_order
from zigma_pl.ops.ssd.terms import copy_ordered, ordered

NORMS = ("x", "branch", "gate", "weight", "shift", "scale")  # positional arguments of add_norm_modulate
NORM_SHAPES = [(2, 70, 64), (3, 1000, 768), (64, 16, 768), (1, 1, 2048)]  # B, L, D
SUM_SHAPES = [(1, 8), (70, 77), (1000, 3224), (32_768, 24)]  # N, E
MATRICES = [(1, 9, 128), (4, 1001, 256), (24, 768, 1536)]  # number, Y, X
TERMS = [(1, 33, 1, 16), (2, 1000, 2, 64)]  # B, L, G, N


def report(failures, name, error, dtype, extra=True):
    """Print a line, and append to `failures` if the error is too large or NaN, or `extra` is false."""
    good = error < TOLERANCES[dtype] and extra
    print("ok  " if good else "FAIL", name, str(dtype)[6:], f"worst {error:.1e}", flush=True)
    if not good:
        failures.append(name)


def check_norm(failures, shape, dtype, parts, centred):
    """Check add + norm + modulate along random orders, with a branch whose mean squares have `parts`, 0 for none."""
    num_batch, num_tokens, width = shape
    generator = torch.Generator("cuda").manual_seed(0)
    normal = functools.partial(torch.randn, generator=generator, device="cuda")
    gate, shift, scale = normal(num_batch, 1, 3 * width).to(dtype).chunk(3, -1)
    given = (normal(shape), normal(shape).to(dtype), gate, 0.3 * normal(width) + 1, shift, scale)
    arguments = dict(zip(NORMS, given, strict=True))
    if parts:
        arguments["mean_squares"] = torch.rand(*shape[:2], parts, generator=generator, device="cuda") + 0.1
    branch_inverse, out_inverse = (inverse_order(random_order(num_tokens, seed)) for seed in range(2))
    inverses = {"branch_inverse": branch_inverse, "out_inverse": out_inverse}

    def run(mean_squares=None, **tensors):
        if mean_squares is not None:
            tensors["branch"] = UnscaledRows(tensors["branch"], mean_squares, 0.1)
        inputs = (tensors[name] for name in NORMS)
        x_new, out = norms.add_norm_modulate(*inputs, epsilon=1e-5, centred=centred, **inverses)
        return torch.cat([x_new, out.to(x_new.dtype)], -1)

    worst = max(error for _, error in errors_of(run, run, arguments).values())
    first, again = (output_and_gradients(run, arguments) for _ in range(2))
    same = all(torch.equal(first[name], again[name]) for name in first)
    report(failures, f"norm {shape} {parts} parts, centred {centred}, same bits {same}", worst, dtype, same)


def check_sums(failures, shape, dtype):
    """Check sums of rows that are a part of wider rows, and of rows of their own."""
    for wider in (0, 8):
        rows = torch.randn(shape[0], shape[1] + wider, device="cuda").to(dtype)[:, : shape[1]]
        truth = rows.double().sum(0)
        error = (column_sums.column_sums(rows).double() - truth).norm() / truth.norm()
        report(failures, f"sums {shape}, in rows with {wider} more", float(error), dtype)


def check_weights(failures, number, shape, dtype):
    """Check products of matrices and factors of their columns, which must be equal, and their gradients."""
    shapes = {"matrix": shape, "factor": shape[1:]}
    arguments = {
        f"{name}{index}": torch.randn(size, device="cuda") for index in range(number) for name, size in shapes.items()
    }

    def run(to=dtype, **tensors):
        pairs = [(tensors[f"matrix{index}"], tensors[f"factor{index}"]) for index in range(number)]
        return torch.stack(scale_columns_of_all(pairs, to))

    exact = functools.partial(run, to=torch.float64)
    worst = max(error for _, error in errors_of(run, exact, arguments).values())
    products = run(**arguments)
    expected = torch.stack([arguments[f"matrix{i}"] * arguments[f"factor{i}"] for i in range(number)]).to(dtype)
    same = torch.equal(products, expected)
    supported = scale_columns_cuda.supports([arguments["matrix0"]], [arguments["factor0"]], dtype)
    name = f"weights {number} x {shape}, products equal {same}, by kernels {supported}"
    report(failures, name, worst, dtype, same and supported)


def check_terms(failures, sizes, dtype):
    """Check that sums for B and C are copied to a part of wider rows, and to nothing else."""
    num_batch, num_tokens, groups, states = sizes
    terms = torch.randn(num_batch, num_tokens, 2, groups, states, device="cuda")
    wide = torch.zeros(num_batch, num_tokens, 2 * groups * states + 32, dtype=dtype, device="cuda")
    copy_ordered(terms, wide[..., 16:-16])
    expected = torch.zeros_like(wide)
    expected[..., 16:-16] = ordered(terms).flatten(2).to(dtype)
    report(failures, f"copies {sizes}", 0.0 if torch.equal(wide, expected) else 1.0, dtype)


def check_all(small):
    """Check all kernels; return the failures."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills uninitialised memory with NaN
    failures = []
    count = 2 if small else None
    for dtype in TOLERANCES:
        for shape, parts, centred in itertools.product(NORM_SHAPES[: 1 if small else None], (0, 1, 3), (False, True)):
            check_norm(failures, shape, dtype, parts, centred)
        for shape in SUM_SHAPES[:count]:
            check_sums(failures, shape, dtype)
        for number, *shape in MATRICES[:count]:
            check_weights(failures, number, tuple(shape), dtype)
        if dtype != torch.float32:
            for sizes in TERMS[:count]:
                check_terms(failures, sizes, dtype)
    torch.use_deterministic_algorithms(False)
    return failures + check_attention("cuda", SMALL if small else CHECKED)


def main():
    """Read the command line and check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="only small tensors")
    failures = check_all(parser.parse_args().small)
    print(len(failures), "failures", failures)
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
