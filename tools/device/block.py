"""Compare the fused ops of a block with float64, and time them and ZigMa-B's training step and forward pass.

python tools/device/block.py FOLDER writes block.json and profile_*.txt, the time of each kernel, to FOLDER.
"""

import argparse
import functools
import gc
import json
import statistics
import time
from pathlib import Path

import torch
from inputs import random_order
from kernels import median_ms
from torch.nn.functional import linear, mse_loss

from zigma_pl.benchmarks import forward
from zigma_pl.benchmarks.model_checks import findings
from zigma_pl.benchmarks.model_table import Setting
from zigma_pl.benchmarks.models import FAMILIES, ModelOptions, build, execute, in_training, make_inputs
from zigma_pl.benchmarks.timing import CudaClock, repeated
from zigma_pl.core.batch import Condition
from zigma_pl.mixers import Mamba
from zigma_pl.models.mixers.mamba import MambaMixer
from zigma_pl.ops import mamba_mixer, norms, norms_cuda
from zigma_pl.ops.backends import relative_errors
from zigma_pl.ops.mamba_mixer import MixerWeights
from zigma_pl.ops.norms_cuda import IN_PLACE

WIDTH, NUM_STATES = 768, 16
BF16 = torch.bfloat16
# execution, activation memory, grid, batch size, captions: 0 none, 1 of full length, 2 of different lengths
STEPS = [
    *("eager,lean,32,32,0", "graph,lean,32,32,2", "eager,lean,32,32,2", "graph,lean,32,32,1", "graph,lean,32,32,0"),
    *("eager,fast,32,32,0", "eager,lean,64,8,0", "eager,lean,128,2,0", "eager,fast,64,8,0", "eager,fast,128,2,0"),
]


def branch_arguments(num_rows, num_tokens, dtype):
    """Return the arguments of add_norm_mix by name, including the weights."""
    torch.manual_seed(0)
    mixer = MambaMixer(WIDTH, NUM_STATES)
    names = ("in_proj.weight", "conv_weight", "conv_bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias", "A_log")
    weights = [mixer.get_parameter(n) for n in (*names, "D", "out_proj.weight")]
    x, branch = torch.randn(2, num_rows, num_tokens, WIDTH)
    gate, shift, scale = torch.randn(num_rows, 1, 3 * WIDTH).to(dtype).chunk(3, -1)
    inputs = {"x": x, "branch": branch.to(dtype), "gate": gate, "norm_weight": torch.rand(WIDTH) + 0.5}
    inputs |= {"shift": shift, "scale": scale, **dict(zip(MixerWeights._fields, weights, strict=True))}
    return {n: t.detach().cuda() for n, t in inputs.items()}


def run_op(memory, order, **arguments):
    """Return both results of the op as one tensor."""
    weights = MixerWeights(*(arguments.pop(n) for n in MixerWeights._fields))
    results = mamba_mixer.add_norm_mix(
        **arguments, weights=weights, visit_order=order, epsilon=1e-5, activation_memory=memory, deterministic=False
    )
    return torch.cat([t.to(arguments["x"].dtype) for t in results], -1)


def run_plain(order, **arguments):
    """Return the same from plain PyTorch and the scan's implementation for any device."""
    weights = MixerWeights(*(arguments.pop(n) for n in MixerWeights._fields))
    x, out = norms._run_reference(*arguments.values(), 1e-5, False)
    from zigma_pl.ops.causal_conv1d import causal_conv1d
    from zigma_pl.ops.selective_scan import selective_scan

    rows, gate = linear(out, weights.in_proj).chunk(2, -1)
    u = causal_conv1d(rows, weights.conv_weight, weights.conv_bias, visit_order=order, backend="reference")
    dt, B, C = linear(u, weights.x_proj).split([weights.dt_proj.shape[1], NUM_STATES, NUM_STATES], -1)
    A, options = -weights.A_log.exp(), {"visit_order": order, "backend": "cpu"}
    y = selective_scan(
        u, linear(dt, weights.dt_proj), A, B, C, skip=weights.D, gate=gate, delta_bias=weights.dt_bias, **options
    )
    return torch.cat([x, linear(y, weights.out_proj)], -1)


def check():
    """Compare the op with float64 and the backbone's step with the reference; return the failures."""
    failures = []
    for dtype, tolerance in ((torch.float32, 2e-5), (BF16, 3e-2), (torch.float16, 1e-2)):
        for memory in ("lean", "fast"):
            order = random_order(300)
            arguments = branch_arguments(2, 300, dtype)
            errors = relative_errors(
                functools.partial(run_op, memory, order), functools.partial(run_plain, order), arguments
            )
            print(dtype, memory, {n: f"{e:.1e}" for n, e in errors.items()}, flush=True)
            if not max(errors.values()) < tolerance:
                failures.append((str(dtype), memory, errors))
    options = ModelOptions(torch.device("cuda"), BF16, 1, compile_scope="blocks")
    names = ("zigzag8", "zigzag8-compiled")
    failures += findings({n: FAMILIES[n] for n in names}, options, training=True)
    return failures


# ----------------------------------------------------------------------------------------------------------- timing
def time_ops(num_rows, num_tokens):
    """Return milliseconds of the norm's kernels and of the whole branch."""
    by_name, order = branch_arguments(num_rows, num_tokens, BF16), random_order(num_tokens)
    inputs = [by_name[n] for n in ("x", "branch", "gate")]
    modulation = norms_cuda.Modulation(by_name["norm_weight"], by_name["shift"], by_name["scale"])
    forward = norms_cuda.run_forward(*inputs, modulation, IN_PLACE, 1e-5, False, True)
    dx_new, dout = torch.randn_like(forward.x_new), torch.randn_like(forward.out)
    kept = (forward.normalised, forward.rstd)
    results = {
        "norm forward": median_ms(lambda: norms_cuda.run_forward(*inputs, modulation, IN_PLACE, 1e-5, False, True)),
        "norm forward, nothing kept": median_ms(
            lambda: norms_cuda.run_forward(*inputs, modulation, IN_PLACE, 1e-5, False, False)
        ),
        "norm backward": median_ms(
            lambda: norms_cuda.run_backward(dx_new, dout, kept, *inputs[1:], modulation, IN_PLACE, False, torch.float32)
        ),
    }
    weights = [by_name[n] for n in MixerWeights._fields]
    arguments = (*inputs, *modulation, None, None, weights, order, 0, 1e-5)
    for memory in ("nothing", "lean", "fast"):
        results[f"{memory} forward"] = median_ms(lambda m=memory: mamba_mixer.mix_forward(*arguments, m, False))
        if memory == "nothing":
            continue
        kept = list(mamba_mixer.mix_forward(*arguments, memory, False)[2:])
        backward = (dx_new, dout, kept, *inputs[1:], *modulation, None, None, weights, order, 0, False, torch.float32)
        results[f"{memory} backward"] = median_ms(lambda b=backward: mamba_mixer.mix_backward(*b))
    return results


def time_products(num_rows=32768, inner=2 * WIDTH, rank=48):
    """Print milliseconds and TFLOP/s of each matrix product of a layer; return the milliseconds."""
    new = functools.partial(torch.randn, device="cuda", dtype=BF16)
    h, u, d, wide = new(num_rows, WIDTH), new(num_rows, inner), new(num_rows, WIDTH), new(num_rows, 2 * inner)
    w_in, w_out, w_x, w_dt = new(2 * inner, WIDTH), new(WIDTH, inner), new(rank + 32, inner), new(inner, rank)
    p, wide_out = new(num_rows, rank + 32), torch.empty_like(wide)
    f32 = {"out_dtype": torch.float32}
    cases = {
        "in_proj": (lambda: linear(h, w_in), WIDTH * 2 * inner),
        "in_proj half": (lambda: linear(h, w_in[:inner]), WIDTH * inner),
        "in_proj half into a slice": (
            lambda: torch.mm(h, w_in[inner:].t(), out=wide_out[:, :inner]), WIDTH * inner),
        "out_proj": (lambda: linear(u, w_out), WIDTH * inner),
        "x_proj": (lambda: linear(u, w_x), inner * (rank + 32)),
        "dt_proj": (lambda: linear(p[:, :rank], w_dt), inner * rank),
        "d out_proj": (lambda: torch.mm(d, w_out), WIDTH * inner),
        "d in_proj": (lambda: torch.mm(wide, w_in), 2 * WIDTH * inner),
        "w in_proj": (lambda: torch.mm(wide.t(), h), 2 * WIDTH * inner),
        "w in_proj f32": (lambda: torch.mm(wide.t(), h, **f32), 2 * WIDTH * inner),
        "w in_proj f32, transposed": (lambda: torch.mm(h.t(), wide, **f32), 2 * WIDTH * inner),
        "w out_proj": (lambda: torch.mm(d.t(), u), WIDTH * inner),
        "w out_proj f32": (lambda: torch.mm(d.t(), u, **f32), WIDTH * inner),
        "w out_proj f32, transposed": (lambda: torch.mm(u.t(), d, **f32), WIDTH * inner),
        "d dt_proj": (lambda: torch.mm(u, w_dt, out=p[:, :rank]), inner * rank),
        "w dt_proj f32": (lambda: torch.mm(u.t(), p[:, :rank], **f32), inner * rank),
        "w x_proj f32": (lambda: torch.mm(p.t(), u, **f32), inner * (rank + 32)),
        "d x_proj": (lambda: u.addmm_(p, w_x), inner * (rank + 32)),
    }  # fmt: skip
    results = {}
    for name, (call, size) in cases.items():
        ms = median_ms(call, seconds=0.05, repeats=5)
        results[name] = ms
        print(f"{name:30s} {ms:.4f} ms {2e-9 * num_rows * size / ms:6.0f} TFLOP/s", flush=True)
    return results


def time_step(execution, memory, grid, batch_size, captions, folder, profiled=False):
    """Return milliseconds and GB of a training step, as in bench train; with batch size 1 the host limits the time."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    options = ModelOptions(torch.device("cuda"), BF16, 1, compile_scope="blocks")
    more = {"caption_dim": 768} if captions else {}
    backbone = build(FAMILIES["zigzag8"], (grid, grid), options, mixers=Mamba(activation_memory=memory), **more)
    lengths = torch.arange(batch_size, device="cuda")[:, None] % 77
    mask = torch.arange(77, device="cuda") <= lengths if captions == 2 else None
    conditions = {"caption": Condition(torch.randn(batch_size, 77, 768, device="cuda"), mask)} if captions else None
    network = in_training(execute(backbone, execution, "blocks"))
    (x_t, t, *_), velocity = make_inputs(backbone, batch_size)
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    memory_after_forward, stages = [], []

    def step():
        stages.append([time.perf_counter()])
        with torch.autocast("cuda", BF16):
            loss = mse_loss(network(x_t, t, conditions).float(), velocity)
        memory_after_forward.append(torch.cuda.memory_allocated())
        stages[-1].append(time.perf_counter())
        loss.backward()
        stages[-1].append(time.perf_counter())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        stages[-1].append(time.perf_counter())

    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    peak = (torch.cuda.max_memory_allocated() - before) / 1e9
    ms = median_ms_of(repeated(step), 3, repeats=7)
    result = {"ms": ms, "GB": peak, "GB forward": (memory_after_forward[-1] - before) / 1e9}
    result["images/s"] = 1e3 * batch_size / result["ms"]
    for index, name in enumerate(("forward", "backward", "optimizer")):
        result[f"host {name}"] = 1e3 * statistics.median(stage[index + 1] - stage[index] for stage in stages)
    print(execution, memory, grid, batch_size, captions, {n: f"{v:.2f}" for n, v in result.items()}, flush=True)
    if profiled:
        profile(repeated(step), 3, folder / f"profile_{execution}_{memory}_{grid}_{captions}.txt")
    return result


def profile_forward(grid, batch_size, folder):
    """Write the time of each kernel of a compiled forward pass in a CUDA graph, called as in bench forward."""
    torch.compiler.reset()
    options = ModelOptions(torch.device("cuda"), BF16, 1, compile_scope="blocks")
    backbone = build(FAMILIES["zigzag8"], (grid, grid), options)
    network = execute(backbone, "compiled-graph", "blocks")
    run, _ = forward.prepare(options, backbone, network, Setting(grid, batch_size))
    ms = median_ms_of(run, forward.CALLS_PER_SAMPLE["cuda"], repeats=20)
    print(f"forward pass, grid {grid}, batch {batch_size}: {ms:.2f} ms", flush=True)
    profile(run, forward.CALLS_PER_SAMPLE["cuda"], folder / f"profile_forward_{grid}_{batch_size}.txt")
    return ms


def median_ms_of(run, num_calls, repeats):
    """Return the milliseconds per call over `num_calls` calls, including their launches."""
    clock = CudaClock()
    return 1e3 * statistics.median(clock.seconds_per_call(run, num_calls) for _ in range(repeats))


def profile(run, num_calls, path):
    """Write the time of each kernel per call, as the mean over `num_calls` calls."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        run(num_calls)
        torch.cuda.synchronize()
    events = sorted(profiler.key_averages(), key=lambda e: -e.self_device_time_total)
    ms = [e.self_device_time_total / num_calls / 1e3 for e in events]
    lines = [f"{sum(ms):9.3f} ms per call on the device"]
    lines += [f"{t:9.3f} ms {e.count / num_calls:7.1f} x {e.key[:150]}" for t, e in zip(ms[:60], events, strict=False)]
    path.write_text("\n".join(lines))
    print("\n".join(line[:130] for line in lines[:34]), flush=True)


def main():
    """Read the command line, check, time and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--no-check", action="store_true")
    parser.add_argument("--no-ops", action="store_true")
    parser.add_argument("--steps", nargs="*", default=STEPS)
    parser.add_argument("--forwards", nargs="*", default=["128,1"], help="grid and batch size of forward passes")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    results = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}

    def save():
        (options.folder / "block.json").write_text(json.dumps(results, indent=1))

    if not options.no_check and (failures := check()):
        print("checks failed:", failures)
    if not options.no_ops:
        results["ops"] = time_ops(32, 1024)
        print({n: f"{t:.3f}" for n, t in results["ops"].items()}, flush=True)
        save()
        results["products"] = time_products()
        save()
    for index, text in enumerate(options.steps):
        execution, memory, *sizes = text.split(",")
        results[text] = time_step(execution, memory, *map(int, sizes), options.folder, profiled=index < 2)
        save()
        torch.compiler.reset()
    for text in options.forwards:
        results[f"forward {text}"] = profile_forward(*map(int, text.split(",")), options.folder)
        save()


if __name__ == "__main__":
    main()
