"""Common parts of the model benchmarks: timing contestants for each setting, and making table rows and records."""

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, partial

from torch import Tensor

from zigma_pl.benchmarks.checks import WrongNumbersError
from zigma_pl.benchmarks.models import FAMILIES, SWEEP, Contestant, ModelOptions, Network, build, execute, outline
from zigma_pl.benchmarks.report import (
    BenchmarkResult,
    figure_cell,
    measured,
    memory_cell,
    per_second,
    ratio_cell,
    time_cell,
)
from zigma_pl.benchmarks.timing import Measurement, Prepared, clock_for, measure, progress
from zigma_pl.models.backbones.base import Backbone

RATIO_NOTE = "medians of interleaved samples; speed ratios are computed per round, ± half their interquartile range"
CAPTIONED = "+captions"  # suffix of the names of contestants with captions
MATCHED_GRID = (8, 8)  # does not affect the layers, and hardly the number of parameters


@dataclass(frozen=True)
class Setting:
    """Input size of all contestants: `batch_size` images of grid x grid tokens."""

    grid: int
    batch_size: int


# (backbone, network, setting) -> function to time, and a result that must be finite
Prepare = Callable[[Backbone, Network, Setting], tuple[Callable[[int], None], Tensor]]


@dataclass(frozen=True)
class Workload:
    """The work that is timed.

    Args:
        subject: name of the benchmark and its part.
        prepare: prepares a contestant.
        min_calls: minimum number of calls per sample; see `Prepared`.
    """

    subject: str
    prepare: Prepare
    min_calls: int = 1

    def measure(
        self, entrants: Mapping[str, tuple[Contestant, ModelOptions]], setting: Setting
    ) -> dict[str, Measurement]:
        """Time the contestants in interleaved rounds; their options must have the same device and number of repeats.

        Raises: WrongNumbersError if a contestant's result is not finite.
        """
        progress(f"{self.subject}, grid {setting.grid}, batch {setting.batch_size}")
        makers = {name: partial(self._make, *entrant, setting) for name, entrant in entrants.items()}
        options = next(options for _, options in entrants.values())
        return measure(makers, repeats=options.repeats, clock=clock_for(options.device), device=options.device)

    def _make(self, contestant: Contestant, options: ModelOptions, setting: Setting) -> Prepared:
        backbone = build(contestant, (setting.grid, setting.grid), options)
        network = execute(backbone, contestant.execution, options.compile_scope)
        run, outcome = self.prepare(backbone, network, setting)
        if not outcome.isfinite().all():
            raise WrongNumbersError(f"bench {self.subject}: {contestant.label} is not finite at {setting}")
        return Prepared(run, "graph" in contestant.execution, self.min_calls)


@dataclass(frozen=True)
class ModelTable:
    """A benchmark of backbones.

    Args:
        result: result to fill, with columns from `columns`.
        options: device, dtype and size.
        contestants: contestants by name.
        prepare: prepares a contestant.
        rivals: column of ratios -> {name of a contestant: name of the one it is compared with}.
        min_calls: minimum number of calls per sample; see `Prepared`.
    """

    result: BenchmarkResult
    options: ModelOptions
    contestants: Mapping[str, Contestant]
    prepare: Prepare
    rivals: Mapping[str, Mapping[str, str]]
    min_calls: int = 1

    def fill(self, settings: Iterable[Setting], save: Callable[[BenchmarkResult], None]) -> BenchmarkResult:
        """Time all settings; `save` is called with the result after each.

        Raises: WrongNumbersError if a contestant's result is not finite.
        """
        entrants = {name: (contestant, self.options) for name, contestant in self.contestants.items()}
        workload = Workload(self.result.subject, self.prepare, self.min_calls)
        for setting in settings:
            self._add(setting, workload.measure(entrants, setting))
            save(self.result)
        return self.result

    def _add(self, setting: Setting, measurements: Mapping[str, Measurement]) -> None:
        rates = {name: per_second(measurement, setting.batch_size) for name, measurement in measurements.items()}
        for name, measurement in measurements.items():
            contestant = self.contestants[name]
            ratios = {
                column: measurement.speed_ratio(measurements[rivals[name]])
                if rivals.get(name) in measurements
                else None
                for column, rivals in self.rivals.items()
            }
            record = {
                **asdict(setting),
                "num_tokens": setting.grid**2 * (self.options.num_frames or 1),
                "contestant": name,
                **contestant.describe(),
                "num_parameters": outline(contestant, (setting.grid, setting.grid), self.options).num_parameters(),
                **measured(measurement, setting.batch_size),
                "ratios": {column: spread and asdict(spread) for column, spread in ratios.items()},
            }
            self.result.records.append(record)
            cells = [figure_cell(record["num_parameters"] / 1e6), time_cell(measurement), figure_cell(rates[name])]
            cells += [*map(ratio_cell, ratios.values()), memory_cell(measurement)]
            self.result.rows.append((str(setting.grid), str(setting.batch_size), contestant.label, *cells))


def match_parameters(contestant: Contestant, options: ModelOptions) -> ModelOptions:
    """Return options whose depth gives a contestant about as many parameters as ZigMa; presets are unchanged."""
    if options.depth is None:
        return options
    goal = _num_parameters(FAMILIES["zigzag8"], options)

    def num_parameters(depth: int) -> int:
        return _num_parameters(contestant, replace(options, depth=depth))

    depths = range(1, 2 * options.depth + 1)
    index = bisect_left(depths, goal, key=num_parameters)
    nearest = min(depths[max(0, index - 1) : index + 1], key=lambda depth: abs(num_parameters(depth) - goal))
    return replace(options, depth=nearest)


@cache
def _num_parameters(contestant: Contestant, options: ModelOptions) -> int:
    return outline(contestant, MATCHED_GRID, options).num_parameters()


def columns(rate: str, rivals: Iterable[str]) -> tuple[str, ...]:
    """Return the column headings of the table; `rate` is the heading of the speed, such as frames/s."""
    return ("grid", "batch", "backbone", "M parameters", "ms", rate, *rivals, "peak GB")


def with_captions(contestants: Mapping[str, Contestant]) -> dict[str, Contestant]:
    """Return the contestants without and with captions; names of the latter end in CAPTIONED."""
    captioned = {f"{name}{CAPTIONED}": replace(one, has_captions=True) for name, one in contestants.items()}
    return {**contestants, **captioned}


def rivals_among(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the comparisons: all with the fastest DiT, orders with the sweep, and captioned steps with others.

    Contestants with captions are compared with a DiT and a sweep with captions.
    """
    names = list(names)
    dit = "dit-compiled-graph" if "dit-compiled-graph" in names else "dit-compiled"
    rivals: dict[str, dict[str, str]] = {f"to {FAMILIES[dit].label}": {}, "to sweep": {}}
    to_dit, to_sweep = rivals.values()
    without = {name: name.removesuffix(CAPTIONED) for name in names}
    for name, base in without.items():
        suffix = name.removeprefix(base)
        to_dit[name] = dit + suffix
        if (sweep := _sweep_of(FAMILIES[base])) is not None:
            to_sweep[name] = sweep + suffix
    if any(name != base for name, base in without.items()):
        rivals["to no captions"] = without
    return rivals


def dit_among(names: Collection[str]) -> str | None:
    """Return the name of the DiT for comparisons, preferably compiled; None if there is none."""
    return next((name for name in ("dit-compiled", "dit") if name in names), None)


def compile_notes(contestants: Mapping[str, Contestant], options: ModelOptions) -> list[str]:
    """Return the table's note on torch.compile, empty if no contestant is compiled."""
    if not any("compiled" in contestant.execution for contestant in contestants.values()):
        return []
    scope = "the whole model" if options.compile_scope == "model" else "each block and other part separately"
    return [f"compiled: torch.compile of {scope}; with CUDA graphs always separately"]


def _sweep_of(contestant: Contestant) -> str | None:
    """Return the name of the contestant with the same mixers and execution, but sweep order; None if there is none."""
    for name, other in FAMILIES.items():
        if other.scan == SWEEP and replace(contestant, family=other.family, scan=SWEEP) == other:
            return name
    return None
