"""Variants of the CUDA kernels of SSD in bfloat16: checks against float64, and times in one table."""

import contextlib
import dataclasses
import functools
from unittest import mock

import torch
from inputs import random_order
from kernels import median_ms
from ssd_checks import NAMES, OPTIONAL, SIZES, arguments_of, check

from zigma_pl.ops.ssd import cuda, launch

# Fields of Layout that differ from the default. Those with new instructions belong at the end, since a failing kernel
# ends the process.
VARIANTS = {
    "default": {},
    "2 blocks": {"forward_blocks": 2, "backward_blocks": 2},
    "1 stage, 4 blocks": {"stages": 1, "forward_blocks": 4},
    "default again": {},
}
WITHOUT_GATE = (("default", {}),)  # also timed so, which shows what the gate costs
SHAPES = ((32, 1024), (8, 4096))


@contextlib.contextmanager
def variant(changes):
    """Change fields of the layout of 16-bit rows for 64 channels and states; other layouts stay as they are."""
    known = launch.layout_of

    def layout_of(num_states, head_dim, dtype, device):
        layout = known(num_states, head_dim, dtype, device)
        fits = dtype is not torch.float32 and (layout.states, layout.slice) == (64, 64)
        return dataclasses.replace(layout, **changes) if fits else layout

    with mock.patch.object(launch, "layout_of", layout_of):
        yield


def time_ssd(shape, sizes=SIZES, optional=OPTIONAL):
    """Return milliseconds of the kernels of both passes, replayed."""
    arguments, order = arguments_of(shape, torch.bfloat16, sizes, optional=optional), random_order(shape[1])
    inputs = [arguments.get(name) for name in NAMES]
    out, states = cuda.forward(*inputs, order, True)
    dout = torch.randn_like(out)
    return {
        "inference": median_ms(lambda: cuda.forward(*inputs, order, False), 0.1, 5),
        "forward": median_ms(lambda: cuda.forward(*inputs, order, True), 0.1, 5),
        "backward": median_ms(lambda: cuda.backward(dout, *inputs, order, states, False), 0.1, 5),
    }


def check_variant(changes):
    """Compare output and gradients with float64 for a few lengths and decays, and in pieces."""
    failures = []
    few = (4, 64, 64)
    with variant(changes):
        for shape in ((3, 1), (3, 65), (3, 1000)):
            check(failures, shape, torch.bfloat16, sizes=few)
        check(failures, (2, 1000), torch.bfloat16, sizes=few, groups=2, number=3, deterministic=True)
        check(failures, (2, 1000), torch.bfloat16, sizes=few, decay="strong", number=3)
        check(failures, (2, 4096), torch.bfloat16)
    return failures


def with_nan_in_new_memory(run):
    """Return run() in deterministic mode, in which PyTorch fills uninitialised memory with NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        return run()
    finally:
        torch.use_deterministic_algorithms(False)


def compare(results):
    """Check and time each variant, and print a table of the times, fastest first; return the failures."""
    failures = []
    try:
        for name, changes in VARIANTS.items():
            failed = with_nan_in_new_memory(functools.partial(check_variant, changes))
            failures += [f"{name}: {failure}" for failure in failed]
            time_variant(results, name, changes, len(failed))
        for name, changes in WITHOUT_GATE:
            time_variant(results, f"{name}, without gate", changes, 0, optional=("skip", "dt_bias"))
    finally:  # a kernel that fails ends the process
        print_table({name: times for name, times in results.items() if name.startswith("variant ")})
    return failures


def time_variant(results, name, changes, num_failures, **options):
    """Time one variant at both shapes, and keep the numbers."""
    with variant(changes):
        times = {str(shape): time_ssd(shape, **options) for shape in SHAPES}
    results[f"variant {name}"] = {"failures": num_failures, "times": times}
    print(f"{name}: {num_failures} failures, {times}", flush=True)


def print_table(variants):
    """Print a line for each variant: its times at both shapes."""
    print(f"{'':44s}" + "".join(f"{shape!s:>12s}: inference forward backward sum" for shape in SHAPES))
    for name, found in sorted(variants.items(), key=lambda item: sum(map(sum_of, item[1]["times"].values()))):
        columns = "".join(
            f"{one['inference']:23.3f} {one['forward']:7.3f} {one['backward']:8.3f} {sum_of(one):.3f}"
            for one in found["times"].values()
        )
        print(f"{name:44s}{columns}" + (f"  {found['failures']} FAILURES" if found["failures"] else ""), flush=True)


def sum_of(times):
    """Return the milliseconds of both passes of a training step."""
    return times["forward"] + times["backward"]
