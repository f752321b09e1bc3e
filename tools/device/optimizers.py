"""Time the steps of optimisers on the gradients of one backbone: python tools/device/optimizers.py FILE.json.

The optimisers are timed alternately. Prints milliseconds, and the fraction of a training step. On a GPU the model has
size B, with 32 images of 32 x 32 tokens, and passes are replayed as CUDA graphs; on a CPU the model is tiny.
"""

import json
import statistics
import sys
from functools import partial

import torch

from zigma_pl.benchmarks.models import FAMILIES, ModelOptions, autocast, build, execute, in_training, make_inputs
from zigma_pl.benchmarks.timing import clock_for, repeated
from zigma_pl.core.machine import choose_device, describe_machine
from zigma_pl.optimizers import ByRole, Muon, parameter_groups

device = choose_device("auto")
on_gpu = device.type == "cuda"
size = {"size": "B"} if on_gpu else {"size": None, "width": 64, "depth": 4}
options = ModelOptions(device, torch.bfloat16 if on_gpu else torch.float32, 1, **size)
grid, batch_size = ((32, 32), 32) if on_gpu else ((8, 8), 2)
contestant = FAMILIES["zigzag8-fast-graph" if on_gpu else "zigzag8"]
backbone = build(contestant, grid, options)
network = in_training(execute(backbone, contestant.execution, options.compile_scope))
x_t, t, target = make_inputs(batch_size, grid, device)


def passes():
    """Run one forward and backward pass."""
    with autocast(device, options.dtype):
        loss = torch.nn.functional.mse_loss(network(x_t, t).float(), target)
    loss.backward()


passes()
adamw = partial(torch.optim.AdamW, lr=1e-6, weight_decay=0.0, fused=True)
optimizers = {
    "AdamW, fused": adamw(parameter_groups([backbone])),
    "Muon and AdamW": ByRole(parameter_groups([backbone]), matrix=partial(Muon, lr=1e-6), other=adamw),
    "torch's Muon and AdamW": ByRole(
        parameter_groups([backbone]),
        matrix=partial(torch.optim.Muon, lr=1e-6, adjust_lr_fn="match_rms_adamw"),
        other=adamw,
    ),
}
calls = {name: repeated(optimizer.step) for name, optimizer in optimizers.items()} | {"passes": repeated(passes)}
clock = clock_for(device)
samples: dict[str, list[float]] = {name: [] for name in calls}
for run in calls.values():
    run(3)
for _ in range(9):
    for name, run in calls.items():
        samples[name].append(1e3 * clock.seconds_per_call(run, 4))
milliseconds = {name: statistics.median(values) for name, values in samples.items()}
for name in optimizers:
    step, whole = milliseconds[name], milliseconds[name] + milliseconds["passes"]
    print(f"{name:24} {step:8.3f} ms, {step / whole:.1%} of a step of {whole:.1f} ms")
with open(sys.argv[1], "w") as file:
    json.dump({"machine": str(describe_machine(device)), "milliseconds": milliseconds, "samples": samples}, file)
