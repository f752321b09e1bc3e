"""What the model benchmarks share: time contestants setting by setting, and make rows and records of it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial

from torch import Tensor

from zigma_pl.backbones.base import Backbone
from zigma_pl.benchmarks.checks import WrongNumbersError
from zigma_pl.benchmarks.models import FAMILIES, Contestant, ModelOptions, Network, build, execute
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

RATIO_NOTE = "medians of samples taken in turns; ratios of speeds turn by turn, ± half the distance of their quartiles"


@dataclass(frozen=True)
class Setting:
    """What all contestants are timed on: `batch_size` pictures of grid x grid tokens."""

    grid: int
    batch_size: int


@dataclass(frozen=True)
class ModelTable:
    """A benchmark of backbones.

    Args:
        result: to be filled; its columns come from `columns`.
        options: device, dtype, size.
        contestants: by name.
        prepare: (backbone, network, setting) -> what is timed and the number that must come out finite.
        rivals: column of ratios -> {name of a contestant: name of the one it is compared with}.
        min_calls: calls of a sample at least; see `Prepared`.
    """

    result: Result
    options: ModelOptions
    contestants: Mapping[str, Contestant]
    prepare: Callable[[Backbone, Network, Setting], tuple[Callable[[int], None], Tensor]]
    rivals: Mapping[str, Mapping[str, str]]
    min_calls: int = 1

    def fill(self, settings: Iterable[Setting], save: Callable[[Result], None]) -> Result:
        """Time all settings; `save` gets the result after each.

        Raises: WrongNumbersError when a contestant's numbers are not finite.
        """
        for setting in settings:
            progress(f"{self.result.subject}, grid {setting.grid}, batch {setting.batch_size}")
            num_parameters: dict[str, int] = {}
            makers = {name: partial(self._make, name, setting, num_parameters) for name in self.contestants}
            clock = clock_for(self.options.device)
            measurements = measure(makers, repeats=self.options.repeats, clock=clock, device=self.options.device)
            self._add(setting, measurements, num_parameters)
            save(self.result)
        return self.result

    def _make(self, name: str, setting: Setting, num_parameters: dict[str, int]) -> Prepared:
        contestant = self.contestants[name]
        backbone = build(contestant, (setting.grid, setting.grid), self.options)
        num_parameters[name] = backbone.num_parameters()
        network = execute(backbone, contestant.execution, self.options.compile_scope)
        run, outcome = self.prepare(backbone, network, setting)
        if not outcome.isfinite().all():
            raise WrongNumbersError(f"bench {self.result.subject}: {contestant.label} is not finite at {setting}")
        return Prepared(run, "graph" in contestant.execution, self.min_calls)

    def _add(self, setting: Setting, measurements: Mapping[str, Measurement], num_parameters: dict[str, int]) -> None:
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
                "num_parameters": num_parameters.get(name),
                **measured(measurement, setting.batch_size),
                "ratios": {column: spread and asdict(spread) for column, spread in ratios.items()},
            }
            self.result.records.append(record)
            millions = None if record["num_parameters"] is None else record["num_parameters"] / 1e6
            cells = [figure_cell(millions), time_cell(measurement), figure_cell(rates[name])]
            cells += [*map(ratio_cell, ratios.values()), memory_cell(measurement)]
            self.result.rows.append((str(setting.grid), str(setting.batch_size), contestant.label, *cells))


def columns(rate: str, rivals: Iterable[str]) -> tuple[str, ...]:
    """Return the heads of the table's columns; `rate` names what is counted, such as frames/s."""
    return ("grid", "batch", "backbone", "M parameters", "ms", rate, *rivals, "peak GB")


def rivals_among(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return what contestants are compared with: all with the fastest DiT; ZigMa's with sweep in the same execution."""
    names = list(names)
    dit = "dit-compiled-graph" if "dit-compiled-graph" in names else "dit-compiled"
    to_dit = dict.fromkeys(names, dit)
    to_sweep = {name: name.replace("zigzag8", "sweep") for name in names if name.startswith(("zigzag8", "sweep"))}
    return {f"to {FAMILIES[dit].label}": to_dit, "to sweep": to_sweep}


def compile_notes(contestants: Mapping[str, Contestant], options: ModelOptions) -> list[str]:
    """Return what the header says about torch.compile, nothing where no contestant is compiled."""
    if not any("compiled" in contestant.execution for contestant in contestants.values()):
        return []
    scope = "the whole model" if options.compile_scope == "model" else "each block and every other part by itself"
    return [f"compiled: torch.compile of {scope}; under CUDA graphs always part by part"]
