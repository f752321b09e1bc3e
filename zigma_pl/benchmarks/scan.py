"""bench scan: the selective scan and SSD, compared with other packages and with the limit of the device.

Axes: B batch, L tokens, E inner width, N state.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, get_args

import torch

from zigma_pl.benchmarks.checks import dtype_name, raise_if_any
from zigma_pl.benchmarks.plots import plot_scan
from zigma_pl.benchmarks.report import (
    BenchmarkResult,
    figure_cell,
    measured,
    percent_cell,
    ratio,
    time_cell,
)
from zigma_pl.benchmarks.roofline import Pass, Rates
from zigma_pl.benchmarks.scan_contestants import MAMBA_SSM, MAMBAPY, SSD_MAMBA_SSM, ScanContestant
from zigma_pl.benchmarks.scan_kinds import (
    SELECTIVE_SCAN,
    SSD,
    SSD_HEAD_DIM,
    SSD_STATES,
    Arguments,
    ScanKind,
    Shape,
    make_order,
)
from zigma_pl.benchmarks.timing import (
    Clock,
    HostClock,
    KernelClock,
    Measurement,
    Prepared,
    copy_bandwidth,
    measure,
    progress,
    repeated,
)
from zigma_pl.core.machine import Machine
from zigma_pl.ops.backends import relative_errors

PASSES: tuple[Pass, ...] = get_args(Pass)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}
DEFAULT_SHAPES: dict[str, list[Shape]] = {
    "cuda": [(*rows, 1536, 16) for rows in ((8, 4096), (32, 1024), (1, 16384), (1, 38416), (1, 1024))],
    "cpu": [(16, 256, 256, 16), (4, 1024, 512, 16)],
}


@dataclass(frozen=True)
class ScanOptions:
    """Options of the benchmark.

    Args:
        device: device to run on; on CUDA, the inputs include gate and dt bias.
        dtype: dtype of the rows.
        repeats: samples per contestant and pass.
        bytes_per_second: memory bandwidth of the device; None to measure it with a copy.
    """

    device: torch.device
    dtype: torch.dtype
    repeats: int
    bytes_per_second: float | None = None

    @property
    def fused(self) -> bool:
        """Whether the scan includes gate and dt bias."""
        return self.device.type == "cuda"


def run(
    options: ScanOptions,
    contestants: Mapping[str, ScanContestant],
    shapes: Iterable[Shape],
    machine: Machine,
    save: Callable[[BenchmarkResult], None],
) -> BenchmarkResult:
    """Check outputs and gradients, then time each shape; `save` is called with the result after each.

    Raises: WrongNumbersError, before anything is timed.
    """
    shapes = list(shapes)
    raise_if_any("scan", findings(options, contestants, sorted({shape[3] for shape in shapes})))
    rates = Rates.of(options.device, options.bytes_per_second or copy_bandwidth(options.device))
    rivals = _rivals(contestants)
    clock = KernelClock() if options.device.type == "cuda" else HostClock()
    result = BenchmarkResult("scan", machine, _notes(options, contestants, rates, rivals), COLUMNS, plot_scan)
    for shape in shapes:
        progress(f"scan, shape {shape}")
        measurements = _measure_shape(options, contestants, shape, clock)
        for contestant in contestants.values():
            _add(result, options, shape, contestant, rivals[contestant.kind], measurements, rates)
        save(result)
    return result


def _rivals(contestants: Mapping[str, ScanContestant]) -> dict[ScanKind, str | None]:
    """Return the contestant that others of its kind are compared with, None if there is none."""
    rivals = {SELECTIVE_SCAN: (MAMBA_SSM, MAMBAPY), SSD: (SSD_MAMBA_SSM,)}
    return {kind: next((name for name in names if name in contestants), None) for kind, names in rivals.items()}


def findings(
    options: ScanOptions, contestants: Mapping[str, ScanContestant], state_sizes: Iterable[int]
) -> Iterator[str]:
    """Yield a line for each contestant, dtype and state size that differs from float64 in a small case."""
    state_sizes = list(state_sizes)
    for contestant in contestants.values():
        shapes = dict.fromkeys(map(contestant.kind.checked_shape, state_sizes))
        for shape in shapes:
            for dtype in sorted({options.dtype, torch.float32}, key=str):
                errors = _errors(contestant, shape, dtype, options)
                worst = max(errors, key=errors.__getitem__)
                if not errors[worst] <= TOLERANCE[dtype]:
                    yield (
                        f"{contestant.name} is wrong with N = {shape[3]} in {dtype_name(dtype)}: relative error "
                        f"{errors[worst]:.1e} of {worst} against the float64 reference, {TOLERANCE[dtype]:.0e} allowed"
                    )


def _errors(contestant: ScanContestant, shape: Shape, dtype: torch.dtype, options: ScanOptions) -> dict[str, float]:
    """Return the relative errors of output and gradients against the float64 reference."""
    arguments = contestant.kind.make_arguments(shape, dtype, options.device, options.fused)
    order = make_order(shape[1], options.device) if contestant.follows_order else None
    return relative_errors(contestant, contestant.kind.reference, arguments, visit_order=order)


# ------------------------------------------------------------------------------------------------------------ times
def _measure_shape(
    options: ScanOptions, contestants: Mapping[str, ScanContestant], shape: Shape, clock: Clock
) -> dict[tuple[str, Pass], Measurement]:
    arguments = {
        kind: kind.make_arguments(shape, options.dtype, options.device, options.fused)
        for kind in {contestant.kind for contestant in contestants.values()}
    }
    order = make_order(shape[1], options.device)
    prepare: dict[Pass, Callable[..., Prepared]] = {"forward": _forward, "backward": _backward, "both": _both}
    makers = {
        (name, which): partial(
            prepare[which], contestant, arguments[contestant.kind], order if contestant.follows_order else None
        )
        for name, contestant in contestants.items()
        for which in PASSES
    }
    return measure(makers, repeats=options.repeats, clock=clock, device=options.device)


def _leaves(contestant: ScanContestant, arguments: Arguments, order: torch.Tensor | None) -> tuple[Arguments, list]:
    """Return the arranged arguments as leaves for autograd, and those that require gradients."""
    arranged = contestant.arrange(arguments, order)
    leaves = {n: t.detach().requires_grad_() if t.is_floating_point() else t for n, t in arranged.items()}
    return leaves, [tensor for tensor in leaves.values() if tensor.requires_grad]


def _forward(contestant: ScanContestant, arguments: Arguments, order: torch.Tensor | None) -> Prepared:
    arranged = contestant.arrange(arguments, order)

    def call() -> None:
        with torch.no_grad():
            contestant.run(arranged, order)

    return Prepared(repeated(call))


def _backward(contestant: ScanContestant, arguments: Arguments, order: torch.Tensor | None) -> Prepared:
    leaves, differentiated = _leaves(contestant, arguments, order)
    output = contestant.run(leaves, order)
    gradient = torch.randn_like(output)
    return Prepared(repeated(lambda: torch.autograd.grad(output, differentiated, gradient, retain_graph=True)))


def _both(contestant: ScanContestant, arguments: Arguments, order: torch.Tensor | None) -> Prepared:
    leaves, differentiated = _leaves(contestant, arguments, order)
    gradient = torch.randn_like(contestant.run(leaves, order))
    return Prepared(repeated(lambda: torch.autograd.grad(contestant.run(leaves, order), differentiated, gradient)))


# ----------------------------------------------------------------------------------------------------------- report
def _notes(
    options: ScanOptions,
    contestants: Mapping[str, ScanContestant],
    rates: Rates,
    rivals: Mapping[ScanKind, str | None],
) -> list[str]:
    order = "zigzag order" if options.fused else "random order"
    raster = ", ".join(name for name, contestant in contestants.items() if not contestant.follows_order)
    origin = "(as given)" if options.bytes_per_second else "(measured with a copy)"
    limit = f"limit: bytes at {rates.bytes_per_second / 1e9:.3g} GB/s {origin}"
    if rates.exponentials_per_second is not None and rates.multiply_adds_per_second is not None:
        limit += (
            f", {rates.exponentials_per_second / 1e12:.3g} T exponentials/s, "
            f"{rates.multiply_adds_per_second / 1e12:.3g} T multiply-adds/s, the longest of the three times"
        )
    notes = [
        f"{dtype_name(options.dtype)} rows, {'skip, gate and dt bias' if options.fused else 'skip'}, all gradients; "
        + (f"{order}, but raster order for {raster}" if raster else order),
        limit,
    ]
    kinds = {contestant.kind for contestant in contestants.values()}
    if SSD in kinds:
        notes.append(f"ssd-*: heads of {SSD_HEAD_DIM}, {SSD_STATES} states instead of N, one group; limit: bytes alone")
    compared = [f"{rivals[kind]} for {what}" for kind, what in _WORDS.items() if kind in kinds and rivals[kind]]
    if compared:
        notes.append(f"to the peer: {', '.join(compared)}")
    if SELECTIVE_SCAN in kinds and rivals[SELECTIVE_SCAN] is None:
        notes.append(f"no ratios, as neither {MAMBA_SSM} nor {MAMBAPY} is timed: pip install {MAMBAPY}")
    return notes


_WORDS = {SELECTIVE_SCAN: "selective scans", SSD: "SSD"}
COLUMNS = (
    *("shape (B, L, E, N)", "scan", "forward ms", "backward ms", "both ms", "to the peer"),
    *("GB", "limit ms", "limit/forward", "limit/backward", "limit/both"),
)


def _add(
    result: BenchmarkResult,
    options: ScanOptions,
    shape: Shape,
    contestant: ScanContestant,
    rival: str | None,
    measurements: Mapping[tuple[str, Pass], Measurement],
    rates: Rates,
) -> None:
    name, work = contestant.name, contestant.kind.work(shape, options.dtype.itemsize, options.fused)
    own = {which: measurements[name, which] for which in PASSES}
    limit = {which: work[which].least_seconds(rates) for which in PASSES}
    fractions = {which: ratio(limit[which], _median(own[which])) for which in PASSES}
    to_rival = ratio(_median(own["both"]), None if rival is None else _median(measurements[rival, "both"]))
    record: dict[str, Any] = {"shape": list(shape), "contestant": name, "ratio_to": rival, "ratio": to_rival}
    for which in PASSES:
        figures = {"work": asdict(work[which]), "limit_seconds": limit[which], "share_of_limit": fractions[which]}
        record[which] = measured(own[which]) | figures
    result.records.append(record)
    cells = [figure_cell(work["both"].num_bytes / 1e9), figure_cell(1000 * limit["both"])]
    times = [time_cell(own[which]) for which in PASSES]
    result.rows.append(
        (str(shape), name, *times, figure_cell(to_rival), *cells, *(percent_cell(fractions[which]) for which in PASSES))
    )


def _median(measurement: Measurement) -> float | None:
    return None if measurement.seconds is None else measurement.seconds.median
