"""Time the steps of optimisers, and training steps with each: python tools/device/optimizers.py FILE.json.

On a GPU the model has size B, with 32 images of 32 x 32 tokens, and passes are replayed as CUDA graphs; this takes less
than a minute. On a CPU the model is tiny. All measurements are taken alternately. Prints, and writes to FILE.json,

- the milliseconds of each optimiser's step, of a whole training step with it, and of the passes alone,
- the milliseconds of each phase of Muon's step, measured apart, as events between the phases cost time,
- the peak of the temporary memory of each optimiser's step,
- the relative error of Muon's orthogonal matrices, compared with the iteration in float64.
"""

import json
import statistics
import sys
import time
from collections import defaultdict
from functools import partial, wraps
from unittest import mock

import torch

from zigma_pl.benchmarks.memory import allocated_bytes, peak_bytes, reset_peak
from zigma_pl.benchmarks.models import FAMILIES, ModelOptions, autocast, build, execute, in_training, make_inputs
from zigma_pl.benchmarks.timing import clock_for, repeated
from zigma_pl.core.machine import choose_device, describe_machine
from zigma_pl.optimizers import ByRole, Muon, parameter_groups
from zigma_pl.training.callbacks.non_finite import skip_step
from zigma_pl.training.optimizers import muon

NUM_ROUNDS = 7
PHASES = ("update_averages", "stacked_directions", "orthogonalised", "apply_updates")

device = choose_device("auto")
on_gpu = device.type == "cuda"
adamw = partial(torch.optim.AdamW, lr=1e-6, weight_decay=0.0, fused=True)


def update_of(optimizer_class, matrix):
    """Return the orthogonal matrix by which an optimiser updates, for this gradient in the first step."""
    parameter = torch.nn.Parameter(torch.zeros_like(matrix))
    parameter.grad = matrix.clone()
    optimizer_class([parameter], lr=1.0, weight_decay=0.0, adjust_lr_fn="original").step()
    return -parameter.detach() / max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5


def errors(optimizer_class):
    """Return the relative error of an optimiser's updates by shape, for Gaussian matrices."""
    found = {}
    for shape in ((3072, 768), (768, 1536), (768, 768)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
        expected = muon.orthogonalised(matrix.double()[None])[0]
        error = (update_of(optimizer_class, matrix) - expected).norm() / expected.norm()
        found["x".join(map(str, shape))] = float(error)
    return found


def check_skipped_step(optimizer, parameters):
    """Check that a step with NaN in a gradient and the flag set changes nothing."""
    before = [parameter.detach().clone() for parameter in parameters]
    parameters[0].grad.fill_(torch.nan)
    skip_step(optimizer, torch.tensor(True, device=device))
    optimizer.step()
    del optimizer.found_inf
    for part in optimizer.parts:
        del part.found_inf
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    assert all(
        state["momentum_buffer"].isfinite().all() for state in optimizer.parts[0].state.values() if len(state) == 1
    )


def phase_milliseconds(optimizer, num_steps):
    """Return the mean milliseconds of each phase of Muon's step, and the number of its calls in a step."""
    marks = defaultdict(list)

    def now():
        if not on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def timed(name):
        phase = getattr(muon, name)

        @wraps(phase)
        def run(*args, **kwargs):
            start = now()
            result = phase(*args, **kwargs)
            marks[name].append((start, now()))
            return result

        return mock.patch.object(muon, name, run)

    patches = [timed(name) for name in PHASES]
    for patch in patches:
        patch.start()
    for _ in range(num_steps):
        optimizer.step()
    for patch in patches:
        patch.stop()
    if on_gpu:
        torch.cuda.synchronize()
    spent = {
        name: sum(start.elapsed_time(end) if on_gpu else 1e3 * (end - start) for start, end in pairs)
        for name, pairs in marks.items()
    }
    return {name: {"ms": spent[name] / num_steps, "calls": len(marks[name]) / num_steps} for name in PHASES}


def main(path):
    """Measure, print and write the results."""
    size = {"size": "B"} if on_gpu else {"size": None, "width": 64, "depth": 4}
    options = ModelOptions(device, torch.bfloat16 if on_gpu else torch.float32, 1, **size)
    grid, batch_size = ((32, 32), 32) if on_gpu else ((8, 8), 2)
    contestant = FAMILIES["zigzag8-fast-graph" if on_gpu else "zigzag8"]
    backbone = build(contestant, grid, options)
    network = in_training(execute(backbone, contestant.execution, options.compile_scope))
    inputs, target = make_inputs(backbone, batch_size)
    parameters = list(backbone.parameters())

    def passes():
        for parameter in parameters:
            parameter.grad = None
        with autocast(device, options.dtype):
            loss = torch.nn.functional.mse_loss(network(*inputs).float(), target)
        loss.backward()

    def training_step(optimizer):
        passes()
        optimizer.step()

    passes()
    optimizers = {
        "AdamW, fused": adamw(parameter_groups([backbone])),
        "Muon and AdamW": ByRole(parameter_groups([backbone]), matrix=partial(Muon, lr=1e-6), other=adamw),
        "torch's Muon and AdamW": ByRole(
            parameter_groups([backbone]),
            matrix=partial(torch.optim.Muon, lr=1e-6, adjust_lr_fn="match_rms_adamw"),
            other=adamw,
        ),
    }
    calls = {"passes": repeated(passes)}
    calls |= {name: repeated(optimizer.step) for name, optimizer in optimizers.items()}
    calls |= {f"training step, {name}": repeated(partial(training_step, one)) for name, one in optimizers.items()}
    for run in calls.values():
        run(3)
    clock = clock_for(device)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(NUM_ROUNDS):
        for name, run in calls.items():
            samples[name].append(1e3 * clock.seconds_per_call(run, 4))
    milliseconds = {name: statistics.median(values) for name, values in samples.items()}
    for name in optimizers:
        step, whole = milliseconds[name], milliseconds[f"training step, {name}"]
        print(f"{name:24} {step:8.3f} ms, {step / whole:6.1%} of a training step of {whole:.2f} ms")

    ours = optimizers["Muon and AdamW"]
    phases = phase_milliseconds(ours, 10)
    for name, of_phase in phases.items():
        print(f"  {name:22} {of_phase['ms']:8.3f} ms in {of_phase['calls']:g} calls")
    temporary = {}
    for name, optimizer in optimizers.items():
        before = allocated_bytes(device)
        reset_peak(device)
        optimizer.step()
        peak = peak_bytes(device)
        temporary[name] = None if peak is None else (peak - before) / 1e9
    print("temporary memory, GB:", temporary)
    error = {"Muon": errors(Muon), "torch's Muon": errors(torch.optim.Muon)}
    print("relative error:", error)
    check_skipped_step(ours, parameters)
    with open(path, "w") as file:
        content = {"machine": str(describe_machine(device)), "torch": torch.__version__, "milliseconds": milliseconds}
        content |= {"samples": samples, "phases": phases, "temporary_gb": temporary, "relative_error": error}
        json.dump(content, file, indent=1)


if __name__ == "__main__":
    main(sys.argv[1])
