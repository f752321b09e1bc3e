"""`python -m zigma_pl doctor`: versions and devices, and which scan backends run here and are correct."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

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
    parser = Parser(
        prog="python -m zigma_pl doctor",
        description="List versions and devices, and check which scan backends run here and give correct results.",
    )
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
    """Print the backends of each scan with the error of outputs and gradients against the float64 reference."""
    from zigma_pl.ops import selective_scan, ssd

    failed = _print_backends_of("scan", selective_scan)
    return int(_print_backends_of("SSD", ssd) or failed)


def _print_backends_of(title: str, op: Any) -> bool:
    """Print the backends of one op, and return whether any of them is wrong.

    Args:
        title: name of the op in the heading.
        op: module of the op, with `available_backends` and `self_check`.
    """
    print(f"\n{title + ' backend':<15}state")
    failed = False
    for name, status in op.available_backends().items():
        if not status.available:
            print(f"{name:<15}not available: {status.reason}")
            continue
        error = op.self_check(name)
        is_correct = error < SELF_CHECK_BOUND
        failed |= not is_correct
        verdict = "correct" if is_correct else f"WRONG (bound {SELF_CHECK_BOUND:.0e})"
        print(f"{name:<15}{verdict}, relative error {error:.1e}, devices: {', '.join(status.devices)}")
    return failed
