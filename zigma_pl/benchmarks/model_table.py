"""What the model benchmarks share: time contestants setting by setting, and make rows and records of it."""

import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial

from torch import Tensor

from zigma_pl.benchmarks.checks import WrongNumbersError
from zigma_pl.benchmarks.models import FAMILIES, Contestant, ModelOptions, Network, build, execute, outline
from zigma_pl.benchmarks.report import (
    Result,
    figure_cell,
    measured,
    memory_cell,
    per_second,
    ratio_cell,
    time_cell,
)
from zigma_pl.benchmarks.timing import Measurement, Prepared, clock_for, measure, progress
from zigma_pl.models.backbones.base import Backbone

RATIO_NOTE = "medians of samples taken in turns; ratios of speeds turn by turn, ± half the distance of their quartiles"
MATCHED_GRID = (8, 8)  # of no influence on the layers, and little on the parameters


@dataclass(frozen=True)
class Setting:
    """What all contestants are timed on: `batch_size` pictures of grid x grid tokens."""

    grid: int
    batch_size: int


# (backbone, network, setting) -> what is timed and the number that must come out finite.
Prepare = Callable[[Backbone, Network, Setting], tuple[Callable[[int], None], Tensor]]


@dataclass(frozen=True)
class Workload:
    """What contestants are timed at.

    Args:
        subject: name of the benchmark, and what part of it.
        prepare: gets a contestant ready.
        min_calls: calls of a sample at least; see `Prepared`.
    """

    subject: str
    prepare: Prepare
    min_calls: int = 1

    def measure(
        self, entrants: Mapping[str, tuple[Contestant, ModelOptions]], setting: Setting
    ) -> dict[str, Measurement]:
        """Time the contestants in turns, each built with its own options, all of one device and number of repeats.

        Raises: WrongNumbersError when a contestant's numbers are not finite.
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
        result: to be filled; its columns come from `columns`.
        options: device, dtype, size.
        contestants: by name.
        prepare: gets a contestant ready.
        rivals: column of ratios -> {name of a contestant: name of the one it is compared with}.
        min_calls: calls of a sample at least; see `Prepared`.
    """

    result: Result
    options: ModelOptions
    contestants: Mapping[str, Contestant]
    prepare: Prepare
    rivals: Mapping[str, Mapping[str, str]]
    min_calls: int = 1

    def fill(self, settings: Iterable[Setting], save: Callable[[Result], None]) -> Result:
        """Time all settings; `save` gets the result after each.

        Raises: WrongNumbersError when a contestant's numbers are not finite.
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
                "num_tokens": setting.grid**2,
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
    """Return the options with the depth that gives a contestant ZigMa's number of parameters, as presets have it."""
    if options.depth is None:
        return options
    goal = outline(FAMILIES["zigzag8"], MATCHED_GRID, options).num_parameters()

    def num_parameters(depth: int) -> int:
        return outline(contestant, MATCHED_GRID, replace(options, depth=depth)).num_parameters()

    depths = range(1, 2 * options.depth + 1)
    place = bisect_left(depths, goal, key=num_parameters)
    nearest = min(depths[max(0, place - 1) : place + 1], key=lambda depth: abs(num_parameters(depth) - goal))
    return replace(options, depth=nearest)


def columns(rate: str, rivals: Iterable[str]) -> tuple[str, ...]:
    """Return the heads of the table's columns; `rate` names what is counted, such as frames/s."""
    return ("grid", "batch", "backbone", "M parameters", "ms", rate, *rivals, "peak GB")


def rivals_among(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return what contestants are compared with: all with the fastest DiT; ZigMa's with sweep in the same execution."""
    names = list(names)
    dit = "dit-compiled-graph" if "dit-compiled-graph" in names else "dit-compiled"
    to_dit = dict.fromkeys(names, dit)
    to_sweep = {name: _sweep_of(name) for name in names if name.startswith(("zigzag8", "sweep", "conv-"))}
    return {f"to {FAMILIES[dit].label}": to_dit, "to sweep": to_sweep}


def dit_among(names: Collection[str]) -> str | None:
    """Return the DiT that others are compared with, the compiled one if both are there; None without any."""
    return next((name for name in ("dit-compiled", "dit") if name in names), None)


def compile_notes(contestants: Mapping[str, Contestant], options: ModelOptions) -> list[str]:
    """Return what the header says about torch.compile, nothing where no contestant is compiled."""
    if not any("compiled" in contestant.execution for contestant in contestants.values()):
        return []
    scope = "the whole model" if options.compile_scope == "model" else "each block and every other part by itself"
    return [f"compiled: torch.compile of {scope}; under CUDA graphs always part by part"]


def _sweep_of(name: str) -> str:
    """Return the name of the contestant that differs by its order alone, a sweep."""
    return re.sub("zigzag8|(?<=conv-)[a-z]+", "sweep", name)
