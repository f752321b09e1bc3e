"""bench order: frames per second and memory by number of scan orders (ZigMa, Figure 4 c, d).

ZigMa distributes its orders over the layers; parallel Mamba scans along all orders in every layer.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

from zigma_pl.benchmarks.checks import raise_if_any
from zigma_pl.benchmarks.forward import prepare
from zigma_pl.benchmarks.model_checks import findings
from zigma_pl.benchmarks.model_table import RATIO_NOTE, ModelTable, Setting, columns
from zigma_pl.benchmarks.models import Contestant, Execution, ModelOptions
from zigma_pl.benchmarks.plots import plot_order
from zigma_pl.benchmarks.report import BenchmarkResult
from zigma_pl.core.machine import Machine
from zigma_pl.models.backbones.base import resolve_size
from zigma_pl.models.backbones.mixer_backbone import SIZES
from zigma_pl.scan.schedule import ScanConfig

MAX_ORDERS = 8
EXECUTIONS: tuple[Execution, ...] = ("eager", "graph")
CONTESTANTS: dict[str, Contestant] = {
    name if execution == "eager" else f"{name}-{execution}": contestant
    for execution in EXECUTIONS
    for name, contestant in (
        ("zigzag", Contestant("ZigMa", "ZigMa zigzag", execution)),
        ("parallel", Contestant("ParallelMamba", "parallel Mamba", execution)),
    )
}
DEFAULT_CONTESTANTS = {"cuda": ["zigzag-graph", "parallel-graph"], "cpu": ["zigzag", "parallel"]}
DEFAULT_SETTINGS = {"cuda": [Setting(64, 1)], "cpu": [Setting(16, 1)]}
RATIO = "to one order"


def with_orders(contestants: Mapping[str, Contestant]) -> dict[str, Contestant]:
    """Return every contestant with 1 to MAX_ORDERS orders, named zigzag 1, parallel 1, zigzag 2, ..."""
    return {
        f"{name} {num_orders}": replace(contestant, scan=ScanConfig("zigzag", num_orders), counts_orders=True)
        for num_orders in range(1, MAX_ORDERS + 1)
        for name, contestant in contestants.items()
    }


def run(
    options: ModelOptions,
    contestants: Mapping[str, Contestant],
    settings: Iterable[Setting],
    machine: Machine,
    save: Callable[[BenchmarkResult], None],
) -> BenchmarkResult:
    """Check each contestant with MAX_ORDERS orders, then time it with 1 to MAX_ORDERS; calls `save` with the result.

    Raises: WrongNumbersError, before anything is timed, or if an output is not finite.
    """
    all_orders = with_orders(contestants)
    most = {name: contestant for name, contestant in all_orders.items() if name.endswith(f" {MAX_ORDERS}")}
    raise_if_any("order", findings(most, options, training=False))
    # Presets of parallel Mamba have fewer layers for more directions; here the depth is fixed, as in the figure.
    width, depth = resolve_size(SIZES, options.size, options.width, options.depth)
    fixed = replace(options, size=None, width=width, depth=depth)
    notes = [
        f"one network call without gradients: {fixed.describe()}, for any number of orders",
        RATIO_NOTE,
    ]
    result = BenchmarkResult("order", machine, notes, columns("frames/s", [RATIO]), plot_order)
    rivals = {RATIO: {name: f"{name.rpartition(' ')[0]} 1" for name in all_orders}}
    return ModelTable(result, fixed, all_orders, partial(prepare, fixed), rivals).fill(settings, save)
