"""bench efficiency: operations, speed and memory of training and sampling, at equal parameters (ZigMa, table 6)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from zigma_pl.benchmarks import forward, train
from zigma_pl.benchmarks.checks import raise_if_any
from zigma_pl.benchmarks.flops import COUNTED, GIGA, describe, ratios
from zigma_pl.benchmarks.model_checks import findings
from zigma_pl.benchmarks.model_table import RATIO_NOTE, Setting, Workload, compile_notes, dit_among, match_parameters
from zigma_pl.benchmarks.models import Contestant, ModelOptions, outline
from zigma_pl.benchmarks.plots import plot_efficiency
from zigma_pl.benchmarks.report import (
    OUT_OF_MEMORY,
    BenchmarkResult,
    figure_cell,
    measured,
    memory_cell,
    per_second,
    ratio_cell,
)
from zigma_pl.benchmarks.timing import Measurement
from zigma_pl.core.machine import Machine
from zigma_pl.models.flops import count_flops
from zigma_pl.ops.operations import Flops

CONTESTANTS = train.CONTESTANTS
DEFAULT_CONTESTANTS = {
    "cuda": ["zigzag8", "vision_mamba-compiled", "parallel8-compiled", "dit-compiled", "uvit-compiled"],
    "cpu": ["zigzag8", "vision_mamba", "parallel8", "dit", "uvit"],
}
DEFAULT_SETTINGS = {
    "cuda": [Setting(32, 32), Setting(64, 8)],
    "cpu": [Setting(8, 8), Setting(16, 2)],
}
COLUMNS = (
    *("grid", "batch", "backbone", "M parameters", "GFLOPs", "to DiT"),
    *("training images/s", "to DiT", "GB", "forward frames/s", "to DiT", "GB"),
)
PASSES = ("train", "forward")


@dataclass(frozen=True)
class Costs:
    """Costs of a contestant: number of parameters, operations, and a measurement for each of PASSES."""

    num_parameters: int
    flops: Flops
    measurements: tuple[Measurement, ...]


def run(
    options: ModelOptions,
    contestants: Mapping[str, Contestant],
    settings: Iterable[Setting],
    machine: Machine,
    save: Callable[[BenchmarkResult], None],
) -> BenchmarkResult:
    """Check outputs and gradients, then count and time each setting; `save` is called with the result after each.

    Raises: WrongNumbersError, before anything is timed, or if values are not finite.
    """
    raise_if_any("efficiency", findings(contestants, options, training=True))
    entrants = {name: (one, match_parameters(one, options)) for name, one in contestants.items()}
    notes = [
        f"training steps and forward passes of one batch, equal parameters: {options.describe(matched=True)}",
        f"GFLOPs: {COUNTED}; GB: peak memory",
        RATIO_NOTE,
        *compile_notes(contestants, options),
    ]
    result = BenchmarkResult("efficiency", machine, notes, COLUMNS, plot_efficiency)
    calls = forward.CALLS_PER_SAMPLE[options.device.type]
    workloads = (
        Workload("efficiency, training", partial(train.prepare, options), train.STEPS_PER_SAMPLE),
        Workload("efficiency, forward pass", partial(forward.prepare, options), calls),
    )
    for setting in settings:
        measurements = [workload.measure(entrants, setting) for workload in workloads]
        costs = {}
        for name, entrant in entrants.items():
            backbone = outline(entrant[0], (setting.grid, setting.grid), entrant[1])
            of_passes = tuple(found[name] for found in measurements)
            costs[name] = Costs(backbone.num_parameters(), count_flops(backbone), of_passes)
        rival = dit_among(contestants)
        for name, contestant in contestants.items():
            record = {**asdict(setting), "num_tokens": setting.grid**2, "contestant": name, **contestant.describe()}
            _add(result, record, costs[name], None if rival is None else costs[rival])
        save(result)
    return result


def _add(result: BenchmarkResult, record: dict[str, Any], costs: Costs, rival: Costs | None) -> None:
    to_dit = ratios(costs.flops, None if rival is None else rival.flops)
    record |= {"num_parameters": costs.num_parameters, "flops": {**describe(costs.flops), "ratios": to_dit}}
    cells = [str(record["grid"]), str(record["batch_size"]), record["label"], figure_cell(costs.num_parameters / 1e6)]
    cells += [figure_cell(costs.flops.total / GIGA), figure_cell(to_dit["total"])]
    for index, (which, measurement) in enumerate(zip(PASSES, costs.measurements, strict=True)):
        spread = None if rival is None else measurement.speed_ratio(rival.measurements[index])
        record[which] = {**measured(measurement, record["batch_size"]), "ratio": spread and asdict(spread)}
        rate = per_second(measurement, record["batch_size"])
        speed = OUT_OF_MEMORY if measurement.out_of_memory else figure_cell(rate)
        cells += [speed, ratio_cell(spread), memory_cell(measurement)]
    result.records.append(record)
    result.rows.append(tuple(cells))
