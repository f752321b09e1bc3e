"""python -m zigma_pl bench scan: how long the selective scan takes here, beside mambapy's parallel scan."""

import argparse
import functools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zigma_pl.ops.backends import relative_errors
from zigma_pl.ops.selective_scan import BACKENDS, ScanBackend, reference, selective_scan

Shape = tuple[int, int, int, int]
Scan = Callable[..., Tensor]

DEFAULT_SHAPES: tuple[Shape, ...] = ((16, 256, 256, 16), (4, 1024, 512, 16))
TOLERANCE = 1e-4
PEER = "mambapy"
PEER_MISSING = "not installed"


@dataclass(frozen=True)
class Timing:
    """One line of the table: medians in milliseconds; ratio_to_mambapy compares forward + backward, None without it."""

    shape: Shape
    backend: str
    forward_ms: float
    forward_backward_ms: float
    ratio_to_mambapy: float | None


def main(argv: list[str]) -> int:
    """Runs the benchmark that argv names; returns the exit status, 1 when a backend computes wrong numbers."""
    options = _parse(argv)
    # A named backend that cannot run here is an error before anything is timed.
    scans: dict[str, Scan] = {name: _our_scan(name) for name in options.backends}
    peer = _mambapy_scan()
    if peer is not None:
        scans[PEER] = peer
    failures = list(_failures(scans, options.shapes))
    if failures:
        print("\n".join(failures), file=sys.stderr)
        return 1
    timings = [timing for shape in options.shapes for timing in _time_shape(shape, scans, options.repeats)]
    print(_report(timings))
    if options.json is not None:
        options.json.write_text(json.dumps({**_machine(), "timings": [asdict(t) for t in timings]}, indent=2) + "\n")
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m zigma_pl bench", description="Measure speed on this machine.")
    subjects = parser.add_subparsers(dest="subject", required=True, metavar="{scan}")
    scan = subjects.add_parser("scan", help="the selective scan on the CPU, against mambapy's parallel scan")
    scan.add_argument("--shapes", nargs="+", type=_shape, default=list(DEFAULT_SHAPES), metavar="B,L,E,N")
    scan.add_argument("--repeats", type=_positive, default=7, help="timed runs of each contestant (default: 7)")
    names = [backend.name for backend in BACKENDS.backends]
    scan.add_argument("--backends", nargs="+", choices=names, default=["cpu"], help="ours to time (default: cpu)")
    scan.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _shape(text: str) -> Shape:
    sizes = [_positive(part) for part in text.split(",")]
    if len(sizes) != 4:
        raise argparse.ArgumentTypeError(f"{text!r} is not four sizes B,L,E,N such as 16,256,256,16")
    return sizes[0], sizes[1], sizes[2], sizes[3]


# ----------------------------------------------------------------------------------------------------- contestants
def _our_scan(name: ScanBackend) -> Scan:
    BACKENDS.choose(name, "cpu")
    return functools.partial(selective_scan, backend=name)


def _mambapy_scan() -> Scan | None:
    """mambapy's scan with the work around it that its Mamba block does, or None when it is not installed."""
    try:
        from mambapy.pscan import pscan
    except ImportError:
        return None

    def scan(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, skip: Tensor, visit_order: Tensor | None = None
    ) -> Tensor:
        """It knows one order only, so visit_order is ignored: ours does the permutation in addition."""
        decay = torch.exp(delta.unsqueeze(-1) * A)
        increment = (delta * u).unsqueeze(-1) * B.unsqueeze(2)
        return (pscan(decay, increment) @ C.unsqueeze(-1)).squeeze(3) + skip * u

    return scan


def _arguments(shape: Shape) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs of the sizes that a freshly initialised Mamba block has, and a random visit order."""
    num_rows, num_tokens, num_channels, num_states = shape
    generator = torch.Generator().manual_seed(0)
    normal = functools.partial(torch.randn, generator=generator)
    arguments = {
        "u": normal(num_rows, num_tokens, num_channels),
        "delta": 0.001 + 0.1 * torch.rand(num_rows, num_tokens, num_channels, generator=generator),
        "A": -torch.arange(1.0, num_states + 1).repeat(num_channels, 1),
        "B": normal(num_rows, num_tokens, num_states),
        "C": normal(num_rows, num_tokens, num_states),
        "skip": normal(num_channels),
    }
    return arguments, torch.randperm(num_tokens, generator=generator).int()


# ----------------------------------------------------------------------------------------------------- correctness
def _failures(scans: dict[str, Scan], shapes: list[Shape]) -> Iterator[str]:
    """One line for each contestant and state size that is wrong; the reference runs at few rows, tokens, channels."""
    for num_states in sorted({shape[3] for shape in shapes}):
        arguments, visit_order = _arguments((2, 67, 40, num_states))
        for name, scan in scans.items():
            order = None if name == PEER else visit_order
            errors = relative_errors(scan, reference.run, arguments, visit_order=order)
            worst = max(errors, key=lambda key: errors[key])
            if not errors[worst] <= TOLERANCE:
                yield (
                    f"bench scan: {name} is wrong with N = {num_states}: relative error {errors[worst]:.1e} of {worst} "
                    f"against the float64 reference, {TOLERANCE:.0e} allowed; nothing was timed"
                )


# ------------------------------------------------------------------------------------------------------------ times
def _time_shape(shape: Shape, scans: dict[str, Scan], repeats: int) -> list[Timing]:
    print(f"timing {shape}: {', '.join(scans)}", file=sys.stderr)
    arguments, visit_order = _arguments(shape)
    runs = {
        (name, kind): functools.partial(run, scan, arguments, visit_order)
        for name, scan in scans.items()
        for kind, run in (("forward", _forward), ("both", _forward_backward))
    }
    median_ms = _interleaved_medians_ms(runs, repeats)
    peer_ms = median_ms.get((PEER, "both"))
    return [
        Timing(shape, name, median_ms[name, "forward"], both := median_ms[name, "both"], peer_ms and both / peer_ms)
        for name in scans
    ]


def _interleaved_medians_ms(runs: Mapping[Any, Callable[[], None]], repeats: int) -> dict[Any, float]:
    """Medians after one warm-up; contestants take turns, so that a noisy moment hits all of them alike."""
    for run in runs.values():
        run()
    seconds: dict[Any, list[float]] = {key: [] for key in runs}
    for _ in range(repeats):
        for key, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[key].append(time.perf_counter() - start)
    return {key: 1000 * statistics.median(values) for key, values in seconds.items()}


def _forward(scan: Scan, arguments: dict[str, Tensor], visit_order: Tensor) -> None:
    with torch.no_grad():
        scan(**arguments, visit_order=visit_order)


def _forward_backward(scan: Scan, arguments: dict[str, Tensor], visit_order: Tensor) -> None:
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in arguments.items()}
    output = scan(**leaves, visit_order=visit_order)
    torch.autograd.grad(output, list(leaves.values()), arguments["u"])


# ----------------------------------------------------------------------------------------------------------- report
def _report(timings: list[Timing]) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in _machine().items())
    header = ("shape (B, L, E, N)", "backend", "forward ms", "forward+backward ms", f"ratio to {PEER}")
    rows = [header, *(_cells(timing) for timing in timings)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    notes = [f"{machine}; float32, random visit order for ours, raster order for {PEER}; all gradients"]
    if all(timing.backend != PEER for timing in timings):
        notes.append(f"{PEER} is not installed, so there is no ratio: pip install {PEER}")
    return "\n".join([*notes, *lines])


def _cells(timing: Timing) -> tuple[str, ...]:
    ratio = PEER_MISSING if timing.ratio_to_mambapy is None else f"{timing.ratio_to_mambapy:.3f}"
    times = (f"{timing.forward_ms:.1f}", f"{timing.forward_backward_ms:.1f}")
    return str(timing.shape), timing.backend, *times, ratio


def _machine() -> dict[str, str | int]:
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "cpu": _cpu_model()}


def _cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
