"""bench train: images or clips per second and memory of training steps: forward, backward, AdamW."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from zigma_pl.benchmarks.checks import raise_if_any
from zigma_pl.benchmarks.model_checks import findings
from zigma_pl.benchmarks.model_table import RATIO_NOTE, ModelTable, Setting, columns, compile_notes, rivals_among
from zigma_pl.benchmarks.models import (
    CAPTION_DIM,
    CAPTION_TOKENS,
    FAMILIES,
    Contestant,
    ModelOptions,
    Network,
    autocast,
    in_training,
    make_inputs,
)
from zigma_pl.benchmarks.plots import plot_train
from zigma_pl.benchmarks.report import BenchmarkResult
from zigma_pl.core.machine import Machine
from zigma_pl.models.backbones.base import Backbone

CONTESTANTS = FAMILIES
DEFAULT_CONTESTANTS = {
    "cuda": ["zigzag8", "sweep", "zigzag8-fast", "sweep-fast", "dit-compiled", "dit", "uvit", "zigzag8-compiled"],
    "cpu": ["zigzag8", "sweep", "dit", "uvit"],
}
STEPS_PER_SAMPLE = 4
DEFAULT_SETTINGS = {
    "cuda": [Setting(32, 32), Setting(64, 8), Setting(128, 2)],
    "cpu": [Setting(8, 8), Setting(16, 2)],
}


def run(
    options: ModelOptions,
    contestants: Mapping[str, Contestant],
    settings: Iterable[Setting],
    machine: Machine,
    save: Callable[[BenchmarkResult], None],
) -> BenchmarkResult:
    """Check outputs and gradients, then time each setting; `save` is called with the result after each.

    Raises: WrongNumbersError, before anything is timed, or if a loss is not finite.
    """
    raise_if_any("train", findings(contestants, options, training=True))
    rivals = rivals_among(contestants)
    notes = [
        f"forward, backward and AdamW: {options.describe()}",
        'fast: activation_memory="fast", which stores more for the backward pass instead of recomputing it',
        *_captions_note(contestants),
        RATIO_NOTE,
        *compile_notes(contestants, options),
    ]
    items = "images" if options.num_frames is None else "clips"
    result = BenchmarkResult("train", machine, notes, columns(f"{items}/s", rivals), plot_train)
    table = ModelTable(result, options, contestants, partial(prepare, options), rivals, STEPS_PER_SAMPLE)
    return table.fill(settings, save)


def _captions_note(contestants: Mapping[str, Contestant]) -> list[str]:
    if not any(contestant.has_captions for contestant in contestants.values()):
        return []
    return [f"captions: 1 to {CAPTION_TOKENS} tokens of {CAPTION_DIM} features, cross-attended in each layer"]


def prepare(
    options: ModelOptions, backbone: Backbone, network: Network, setting: Setting
) -> tuple[Callable[[int], None], Tensor]:
    """Return the steps to time, and the loss of the first."""
    backbone.train()
    network = in_training(network)
    inputs, velocity = make_inputs(backbone, setting.batch_size)
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=1e-4, weight_decay=0.0, fused=True)

    def step() -> Tensor:
        with autocast(options.device, options.dtype):
            loss = mse_loss(network(*inputs).float(), velocity)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def run(num_calls: int) -> None:
        for _ in range(num_calls):
            step()

    return run, step()
