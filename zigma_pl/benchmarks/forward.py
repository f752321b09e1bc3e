"""bench forward: frames per second and memory of one network call, by grid size (ZigMa, Figure 4 a, b)."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from zigma_pl.benchmarks.checks import raise_if_any
from zigma_pl.benchmarks.model_checks import findings
from zigma_pl.benchmarks.model_table import RATIO_NOTE, ModelTable, Setting, columns, compile_notes, rivals_among
from zigma_pl.benchmarks.models import FAMILIES, Contestant, ModelOptions, Network, autocast, make_inputs
from zigma_pl.benchmarks.plots import plot_forward
from zigma_pl.benchmarks.report import BenchmarkResult
from zigma_pl.core.machine import Machine
from zigma_pl.models.backbones.base import Backbone
from zigma_pl.runtime.graphed_sampling import GraphedBackbone

CONTESTANTS = FAMILIES
DEFAULT_CONTESTANTS = {
    "cuda": [
        "zigzag8-compiled-graph",
        "sweep-compiled-graph",
        "dit-compiled-graph",
        "zigzag8-graph",
        "zigzag8",
        "dit-compiled",
        "dit",
        "uvit",
    ],
    "cpu": ["zigzag8", "sweep", "dit", "uvit"],
}
DEFAULT_SETTINGS = {
    "cuda": [Setting(32, 1), Setting(64, 1), Setting(128, 1), Setting(32, 16), Setting(196, 1)],
    "cpu": [Setting(8, 1), Setting(16, 1), Setting(24, 1), Setting(32, 1)],
}
# Fewer than a sampler's calls per image. One-time work, such as casting the weights, is averaged over them.
CALLS_PER_SAMPLE = {"cuda": 10, "cpu": 1}


def run(
    options: ModelOptions,
    contestants: Mapping[str, Contestant],
    settings: Iterable[Setting],
    machine: Machine,
    save: Callable[[BenchmarkResult], None],
) -> BenchmarkResult:
    """Check the contestants, then time each setting; `save` is called with the result after each.

    Raises: WrongNumbersError, before anything is timed, or if an output is not finite.
    """
    raise_if_any("forward", findings(contestants, options, training=False))
    rivals = rivals_among(contestants)
    calls = CALLS_PER_SAMPLE[options.device.type]
    in_a_row = f", averaged over {calls} or more successive calls" if calls > 1 else ""
    notes = [
        f"one network call without gradients{in_a_row}: {options.describe()}",
        RATIO_NOTE,
        *compile_notes(contestants, options),
    ]
    result = BenchmarkResult("forward", machine, notes, columns("frames/s", rivals), plot_forward)
    table = ModelTable(result, options, contestants, partial(prepare, options), rivals, calls)
    return table.fill(settings, save)


def prepare(
    options: ModelOptions, backbone: Backbone, network: Network, setting: Setting
) -> tuple[Callable[[int], None], Tensor]:
    """Return the calls to time, and the output of one."""
    backbone.eval()
    inputs, _ = make_inputs(backbone, setting.batch_size)

    def run(num_calls: int) -> None:
        # Entered once for all calls, as in a sampler's loop, so that the weights are cast once.
        fixed = network.fixed_weights() if isinstance(network, GraphedBackbone) else nullcontext()
        with torch.no_grad(), autocast(options.device, options.dtype), fixed:
            for _ in range(num_calls):
                network(*inputs)

    with torch.no_grad(), autocast(options.device, options.dtype):
        return run, network(*inputs)
