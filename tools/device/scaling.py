"""Measure training on 1, 2 and 4 GPUs of one host: images per second and scaling efficiency.

python tools/device/scaling.py RESULTS.json [--contestant zigzag8-graph] [--captions] [--num_devices 1 2 4] [...]

The efficiency is the throughput of n GPUs divided by n times that of one. The model is a contestant of `bench train` of
size B on 1,024 tokens under bf16 autocast, with DDP as in configs/strategy/ddp.yaml and the same batch size on every
GPU. The numbers of GPUs are measured alternately, and the median over all rounds is reported. Needs only torch, numpy
and einops. To try the script without a GPU, use --device cpu, which trains a tiny model with gloo.
"""

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from zigma_pl.benchmarks.model_table import Setting
from zigma_pl.benchmarks.models import ModelOptions, build, contestants_named, execute, in_training
from zigma_pl.benchmarks.train import CONTESTANTS, prepare

DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}
GRIDS = {"cuda": 32, "cpu": 8}


class Trained(nn.Module):
    """A module for DDP around the callable that trains a backbone, which may replay CUDA graphs."""

    def __init__(self, backbone, network):
        super().__init__()
        self.backbone = backbone
        self.network = [network]  # not registered again

    def forward(self, *inputs):
        """Predict; see `Backbone.forward`."""
        return self.network[0](*inputs)


def measure(rank, world_size, options, folder):
    """Train in one of the processes; rank 0 writes the seconds per step of all processes together."""
    device = torch.device(options.device, rank) if options.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, f"file://{folder}/store", rank=rank, world_size=world_size)
    size = {"size": "B"} if device.type == "cuda" else {"size": None, "width": 32, "depth": 2}
    model_options = ModelOptions(device, DTYPES[device.type], repeats=1, **size)
    setting = Setting(GRIDS[device.type], options.batch_size)
    contestant = contestants_named(CONTESTANTS, [options.contestant], device)[options.contestant]
    contestant = dataclasses.replace(contestant, has_captions=options.captions)
    backbone = build(contestant, (setting.grid, setting.grid), model_options)
    network = Trained(backbone, in_training(execute(backbone, contestant.execution, "blocks")))
    if world_size > 1:
        devices = [rank] if device.type == "cuda" else None
        settings = {"gradient_as_bucket_view": True, "bucket_cap_mb": options.bucket_cap_mb}
        constants = [name for name, _ in network.named_buffers()]  # as in GenerativeModule.setup
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(network, constants)
        network = DistributedDataParallel(network, device_ids=devices, **settings)
    train, loss = prepare(model_options, backbone, network, setting)
    train(options.num_warmup_steps)
    seconds = [timed(train, options.num_steps, device) for _ in range(options.num_repeats)]
    assert torch.isfinite(loss), "the loss is not finite"
    if rank == 0:
        (folder / "seconds.json").write_text(json.dumps(seconds))
    distributed.barrier()
    distributed.destroy_process_group()


def timed(train, num_steps, device):
    """Return the seconds per step, from when all processes have started until all have finished."""
    wait_for_all(device)
    began = time.perf_counter()
    train(num_steps)
    wait_for_all(device)
    return (time.perf_counter() - began) / num_steps


def wait_for_all(device):
    """Wait until every process has finished its work on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    distributed.barrier()


def seconds_per_step(world_size, options):
    """Return the median over the repeats of one round."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(measure, (world_size, options, Path(folder)), nprocs=world_size)
        return statistics.median(json.loads(Path(folder, "seconds.json").read_text()))


def read_options():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--num_devices", type=int, nargs="+", default=[1, 2, 4], help="must include 1")
    parser.add_argument("--batch_size", type=int, default=32, help="images per step and device")
    parser.add_argument("--bucket_cap_mb", type=int, default=50)
    parser.add_argument("--contestant", default="zigzag8", help="name in `python -m zigma_pl bench train`")
    parser.add_argument("--captions", action="store_true", help="with captions of 77 tokens")
    parser.add_argument("--num_turns", type=int, default=2)
    parser.add_argument("--num_repeats", type=int, default=3)
    parser.add_argument("--num_steps", type=int, default=20, help="of one repeat")
    parser.add_argument("--num_warmup_steps", type=int, default=10)
    return parser.parse_args()


def main():
    """Measure, print a line for each number of devices, and write the record."""
    options = read_options()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rounds = [{n: seconds_per_step(n, options) for n in options.num_devices} for _ in range(options.num_turns)]
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU, a tiny model: no measurement"
    rows = []
    print(f"{name}, torch {torch.__version__}, batch {options.batch_size} per device")
    for n in options.num_devices:
        images_per_second = statistics.median(n * options.batch_size / seconds[n] for seconds in rounds)
        efficiency = statistics.median(seconds[1] / seconds[n] for seconds in rounds)
        row = {"num_devices": n, "images_per_second": images_per_second, "efficiency": efficiency}
        rows.append(row)
        print(f"{n} devices: {images_per_second:8.1f} images/s, efficiency {efficiency:.3f}")
    record = {"device": name, "torch": torch.__version__, "rows": rows, "seconds_of_a_step": rounds}
    record["options"] = {key: str(value) for key, value in vars(options).items()}
    options.results.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
