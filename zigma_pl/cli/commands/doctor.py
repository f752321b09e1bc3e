"""`python -m zigma_pl doctor`: versions and devices, and which scan backends run here and are correct."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import cast

from zigma_pl.cli.commands.parser import Parser

PACKAGES = (
    "zigma_pl",
    "torch",
    "lightning",
    "torchmetrics",
    "einops",
    "omegaconf",
    "jsonargparse",
    "tensorboard",
    "diffusers",
    "numpy",
    "scikit-learn",
    "torchdiffeq",
    "safetensors",
    "transformers",
    "mamba-ssm",
    "causal-conv1d",
    "mambapy",
    "torch-fidelity",
)
SELF_CHECK_BOUND = 1e-4


def main(argv: list[str]) -> int:
    """Print the report; returns 1 if an available backend computes wrong numbers."""
    parser = Parser(prog="python -m zigma_pl doctor", description=__doc__)
    parser.parse_args(argv)
    print_versions()
    print_devices()
    return print_backends()


def print_versions() -> None:
    """Print the versions of Python and of the packages that are used."""
    print(f"python         {platform.python_version()} on {platform.platform()}")
    for name in PACKAGES:
        try:
            print(f"{name:<15}{version(name)}")
        except PackageNotFoundError:
            print(f"{name:<15}not installed")


def print_devices() -> None:
    """Print the processor and every CUDA device."""
    import torch

    print(f"\ncpu            {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    if not torch.cuda.is_available():
        print("cuda           no device")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        print(f"cuda:{index}         {properties.name}, {properties.total_memory / 2**30:.0f} GiB")


def print_backends() -> int:
    """Print each scan backend with the error of its output and gradients against the float64 reference."""
    from zigma_pl.ops.selective_scan import ScanBackend, available_backends, self_check

    print("\nscan backend   state")
    failed = False
    for name, status in available_backends().items():
        if not status.available:
            print(f"{name:<15}not available: {status.reason}")
            continue
        error = self_check(cast("ScanBackend", name))
        is_correct = error < SELF_CHECK_BOUND
        failed |= not is_correct
        verdict = "correct" if is_correct else f"WRONG (bound {SELF_CHECK_BOUND:.0e})"
        print(f"{name:<15}{verdict}, relative error {error:.1e}, devices: {', '.join(status.devices)}")
    return int(failed)
