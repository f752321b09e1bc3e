"""Measure the first training step on a machine, whose kernels are compiled, and the first of a later process.

python tools/device/first_call.py RESULTS.json [--contestants zigzag8 mamba2] [--device cpu]

For each contestant of `bench train`, two new processes share a new cache folder. Each trains a DiT first, so that the
libraries of PyTorch are loaded. The result is the duration of the contestant's first step less that of a later one, and
the part of it that is spent on loading kernels of this package. With --device cpu the models are tiny and nothing is
compiled.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch

from zigma_pl.benchmarks.model_table import Setting
from zigma_pl.benchmarks.models import FAMILIES, ModelOptions, build
from zigma_pl.benchmarks.train import prepare
from zigma_pl.core.machine import describe_machine
from zigma_pl.ops import nvrtc

CALLS = ("compiled", "from the cache")  # the first and the second process


def first_step(name, device):
    """Return the seconds by which the first step is longer than a later one, and those spent on loading kernels."""
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    size = {"size": "B"} if on_gpu else {"size": None, "width": 32, "depth": 2}
    options = ModelOptions(device, torch.bfloat16 if on_gpu else torch.float32, repeats=1, **size)
    setting = Setting(32, 8) if on_gpu else Setting(8, 2)
    grid, loading = (setting.grid, setting.grid), []

    def timed(call, *arguments, **more):
        begin = time.perf_counter()
        result = call(*arguments, **more)
        if on_gpu:
            torch.cuda.synchronize()
        return result, time.perf_counter() - begin

    def load(*arguments, original=nvrtc.load, **more):
        kernel, seconds = timed(original, *arguments, **more)
        loading.append(seconds)
        return kernel

    train_dit(options, setting)
    backbone = build(FAMILIES[name], grid, options)
    with mock.patch.object(nvrtc, "load", load):
        (run, _), first = timed(prepare, options, backbone, backbone, setting)
    _, later = timed(run, 1)
    return {"first step": first - later, "kernels": sum(loading), "num_kernels": len(loading)}


def train_dit(options, setting):
    """Take two training steps of a DiT."""
    backbone = build(FAMILIES["dit"], (setting.grid, setting.grid), options)
    run, _ = prepare(options, backbone, backbone, setting)
    run(1)


def in_new_process(name, device, cache):
    """Return the result of `first_step` in a new process with this folder of caches."""
    command = [sys.executable, __file__, "--first_step", name, "--device", device]
    environment = os.environ | {"XDG_CACHE_HOME": cache, "CUDA_CACHE_PATH": str(Path(cache, "nvrtc"))}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def main():
    """Measure, print a line for each process, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=Path("first_call.json"))
    parser.add_argument("--contestants", nargs="+", default=["zigzag8", "mamba2"])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--commit", help="commit to record if this is not a git checkout")
    parser.add_argument("--first_step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.first_step is not None:
        print(json.dumps(first_step(options.first_step, options.device)))
        return
    results = {"machine": describe_machine(torch.device(options.device), options.commit), "seconds": {}}
    for name in options.contestants:
        with tempfile.TemporaryDirectory() as cache:
            found = {call: in_new_process(name, options.device, cache) for call in CALLS}
        results["seconds"][name] = found
        for call, seconds in found.items():
            print(f"{name}, {call}:", ", ".join(f"{part} {value:.3g}" for part, value in seconds.items()), flush=True)
        options.results.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
