"""bench flops: operations of one network call by kind, counted without timing (ZigMa, table 6)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict

from zigma_pl.benchmarks.model_table import Setting, dit_among, match_parameters
from zigma_pl.benchmarks.models import FAMILIES, Contestant, ModelOptions, outline
from zigma_pl.benchmarks.plots import plot_flops
from zigma_pl.benchmarks.report import BenchmarkResult, figure_cell
from zigma_pl.core.machine import Machine
from zigma_pl.models.backbones.base import Backbone
from zigma_pl.models.flops import count_flops
from zigma_pl.ops.operations import Flops

# The execution does not change the number of operations.
CONTESTANTS = {name: contestant for name, contestant in FAMILIES.items() if contestant.execution == "eager"}
DEFAULT_CONTESTANTS = {"cpu": ["zigzag8", "vision_mamba", "parallel8", "dit", "uvit"]}
DEFAULT_SETTINGS = {"cpu": [Setting(32, 1), Setting(64, 1)]}
GIGA = 1e9
COUNTED = "all operations of one call for one image, a multiply-add counted as two"
COLUMNS = (
    *("grid", "backbone", "M parameters", "GFLOPs", "to DiT"),
    *("linear", "attention", "convolution", "scan", "elementwise", "G multiply-adds", "to DiT"),
)


def run(
    options: ModelOptions,
    contestants: Mapping[str, Contestant],
    settings: Iterable[Setting],
    machine: Machine,
    save: Callable[[BenchmarkResult], None],
) -> BenchmarkResult:
    """Count each setting; `save` is called with the result after each."""
    sizes = {name: match_parameters(contestant, options) for name, contestant in contestants.items()}
    notes = [
        f"GFLOPs: {COUNTED}: {options.describe_size(matched=True)}",
        "elementwise: norms, softmax, activations, sums; multiply-adds: of linear, attention and convolution",
    ]
    anywhere = {key: value for key, value in machine.items() if key not in ("device", "threads")}
    result = BenchmarkResult("flops", anywhere, notes, COLUMNS, plot_flops)
    for setting in settings:
        grid = (setting.grid, setting.grid)
        backbones = {name: outline(contestant, grid, sizes[name]) for name, contestant in contestants.items()}
        counts = {name: count_flops(backbone) for name, backbone in backbones.items()}
        rival = dit_among(contestants)
        for name, contestant in contestants.items():
            to_dit = ratios(counts[name], None if rival is None else counts[rival])
            _add(result, setting, {"contestant": name, **contestant.describe()}, backbones[name], counts[name], to_dit)
        save(result)
    return result


def ratios(flops: Flops, rival: Flops | None) -> dict[str, float | None]:
    """Return the operations and multiply-adds relative to those of the rival."""
    return {
        "total": None if rival is None else flops.total / rival.total,
        "multiply_adds": None if rival is None else flops.multiply_adds / rival.multiply_adds,
    }


def _add(
    result: BenchmarkResult,
    setting: Setting,
    contestant: dict[str, object],
    backbone: Backbone,
    flops: Flops,
    to_dit: dict[str, float | None],
) -> None:
    result.records.append(
        {
            "grid": setting.grid,
            "num_tokens": setting.grid**2,
            **contestant,
            "num_parameters": backbone.num_parameters(),
            "flops": describe(flops),
            "ratios": to_dit,
        }
    )
    kinds = [figure_cell(count / GIGA) for count in asdict(flops).values()]
    result.rows.append(
        (
            *(str(setting.grid), str(contestant["label"]), figure_cell(backbone.num_parameters() / 1e6)),
            *(figure_cell(flops.total / GIGA), figure_cell(to_dit["total"]), *kinds),
            *(figure_cell(flops.multiply_adds / GIGA), figure_cell(to_dit["multiply_adds"])),
        )
    )


def describe(flops: Flops) -> dict[str, int]:
    """Return a count as plain values for the JSON record."""
    return {"total": flops.total, "multiply_adds": flops.multiply_adds, **asdict(flops)}
