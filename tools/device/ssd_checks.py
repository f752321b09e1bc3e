"""Compare the CUDA kernels of SSD with float64: lengths, sizes, dtypes, decays, groups, pieces, repetition."""

import contextlib
import functools
from unittest import mock

import torch
from checks import errors_of, output_and_gradients
from inputs import random_order

from zigma_pl.ops.ssd import cpu, cuda, launch

NAMES = ("x", "dt", "A", "B", "C", "skip", "gate", "dt_bias")
OPTIONAL = ("skip", "gate", "dt_bias")
SUMS = ("A", "skip", "dt_bias")  # gradients that are sums over all tokens, whose terms cancel in part
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
WITHOUT_DECAY = 10  # factor on the tolerance for states that sum 100,000 terms in float32
SIZES = (24, 64, 64)  # heads, their channels, states


def arguments_of(shape, dtype, sizes=SIZES, groups=1, optional=OPTIONAL, decay="usual"):
    """Return inputs for (B, L) with a mixer's strides, by name.

    decay: "usual" as in a new mixer, "strong" with log decays of -30 beside some near 0, "none" with some of -1e-7.
    """
    heads, width, states = sizes
    generator = torch.Generator("cuda").manual_seed(0)
    normal = functools.partial(torch.randn, generator=generator, device="cuda")
    uniform = functools.partial(torch.rand, generator=generator, device="cuda")
    x, B, C = (
        normal(*shape, heads * width + 2 * groups * states)
        .to(dtype)
        .split([heads * width, groups * states, groups * states], -1)
    )
    gate, _, dt = normal(*shape, 2 * heads * width + heads).to(dtype).split([heads * width, heads * width, heads], -1)
    step = torch.exp(uniform(heads) * 4.6 - 6.9)
    arguments = {
        "x": x.unflatten(-1, (heads, width)),
        "dt": dt,
        "A": -1 - 15 * uniform(heads),
        "B": B.unflatten(-1, (groups, states)),
        "C": C.unflatten(-1, (groups, states)),
        "skip": normal(heads),
        "gate": gate.unflatten(-1, (heads, width)),
        "dt_bias": step + torch.log(-torch.expm1(-step)),
    }
    if decay != "usual" or "dt_bias" not in optional:
        optional = [name for name in optional if name != "dt_bias"]
        arguments["dt"] = uniform(*shape, heads).mul(0.1).add(1e-3).to(dtype)
    if decay == "strong":
        strong = uniform(*shape, heads) < 0.2
        arguments["dt"] = torch.where(strong, 1.0, 1e-3).to(dtype)
        arguments["A"] = torch.where(torch.arange(heads, device="cuda") % 2 == 0, -30.0, -1e-2)
    if decay == "none":
        arguments["A"] = torch.full((heads,), -1e-6, device="cuda")
    return {n: t for n, t in arguments.items() if n in optional or n not in OPTIONAL}


def orders_of(shape):
    """Return a random order for each sample, (B, L)."""
    return torch.stack([random_order(shape[1], seed) for seed in range(shape[0])])


@contextlib.contextmanager
def pieces(number):
    """Divide sequences into this many pieces; None for the usual number."""
    with mock.patch.object(launch, "pieces_for", return_value=number) if number else contextlib.nullcontext():
        yield


def check(failures, shape, dtype, *, number=None, deterministic=False, factor=1, **options):
    """Compare output and gradients with float64, with a factor on the tolerance."""
    arguments, order = arguments_of(shape, dtype, **options), orders_of(shape)
    run = functools.partial(cuda.run, visit_order=order, deterministic=deterministic)
    with pieces(number):
        errors = errors_of(run, functools.partial(cpu.run, visit_order=order), arguments)
    worst = max(errors, key=lambda name: errors[name][1])
    allowed = {name: factor * TOLERANCES[dtype] * (4 if name in SUMS else 1) for name in errors}
    good = all(norm < allowed[name] for name, (_, norm) in errors.items())  # NaN never passes
    line = f"{shape} {str(dtype)[6:]} {options} pieces={number} det={deterministic}"
    print(
        "ok  " if good else "FAIL",
        line,
        f"worst {worst}, max {errors[worst][0]:.1e}, norm {errors[worst][1]:.1e}",
        flush=True,
    )
    if not good:
        failures.append(line)
        print("    ", {name: f"{largest:.1e} {norm:.1e}" for name, (largest, norm) in errors.items()}, flush=True)


def check_repetition(failures):
    """Check that deterministic runs give the same bits, and that a sample does not depend on its batch."""
    arguments, orders = arguments_of((4, 1000), torch.bfloat16), orders_of((4, 1000))
    alone = {n: t if t.ndim == 1 else t[3:] for n, t in arguments.items()}

    def run(order, **leaves):
        return cuda.run(**leaves, visit_order=order, deterministic=True)

    for number in (1, 3):
        with pieces(number):
            first, again = (output_and_gradients(functools.partial(run, orders), arguments) for _ in range(2))
            out = run(orders[3:], **alone)
        if not all(torch.equal(first[name], again[name]) for name in first):
            failures.append(f"two deterministic runs differ, pieces={number}")
        if not torch.equal(first["output"][3:], out):
            failures.append(f"the last sample depends on the others, pieces={number}")


def check_small():
    """Check a few small inputs, which are enough for a memory checker; return the failures."""
    failures = []
    few = (4, 64, 64)
    check(failures, (2, 130), torch.bfloat16, sizes=few)
    check(failures, (1, 600), torch.bfloat16, sizes=few, number=2, deterministic=True)
    check(failures, (2, 65), torch.float32, sizes=few)
    check(failures, (1, 100), torch.bfloat16, sizes=(4, 128, 128), groups=2)
    check(failures, (1, 100), torch.float16, sizes=(4, 32, 16), optional=())
    return failures


def check_all():
    """Check lengths, sizes, dtypes, decays, groups and pieces; return the failures."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills uninitialised memory with NaN
    failures = []
    few = (4, 64, 64)
    for dtype in (torch.bfloat16, torch.float32):
        for num_tokens in (1, 2, 63, 64, 65, 1000):
            check(failures, (3, num_tokens), dtype, sizes=few)
        check(failures, (2, 1000), dtype, sizes=few, number=4, deterministic=True)
        for decay in ("strong", "none"):
            check(failures, (2, 1000), dtype, sizes=few, decay=decay)
        check(failures, (1, 100_000), dtype, sizes=(2, 64, 64))
        factor = WITHOUT_DECAY if dtype == torch.float32 else 1
        check(failures, (1, 100_000), dtype, sizes=(2, 64, 64), decay="none", factor=factor)
    for sizes in ((4, 32, 16), (4, 128, 64), (4, 64, 128)):
        check(failures, (2, 200), torch.bfloat16, sizes=sizes, groups=2)
    check(failures, (2, 200), torch.bfloat16, sizes=few, optional=())
    check(failures, (2, 1000), torch.float16, sizes=few)
    check(failures, (2, 4096), torch.bfloat16)
    check(failures, (1, 100_000), torch.bfloat16, sizes=few)
    check_repetition(failures)
    torch.use_deterministic_algorithms(False)
    return failures
