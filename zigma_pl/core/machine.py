"""Description of the machine for measurement records: date, device, versions, commit."""

import platform
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

from zigma_pl.core.errors import UserError

Machine = dict[str, str | int]


def choose_device(name: str) -> torch.device:
    """Return the device for `--device`: "auto" is cuda if available, otherwise cpu.

    Raises: UserError if cuda is chosen but not available.
    """
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise UserError("--device cuda: PyTorch sees no CUDA device; use --device cpu or auto")
    return torch.device("cuda", torch.cuda.current_device()) if has_cuda and name != "cpu" else torch.device("cpu")


def describe_machine(device: torch.device, commit: str | None = None) -> Machine:
    """Return the description for headers of tables and JSON files.

    Args:
        device: the device that is used.
        commit: commit of the code, for a copy outside git; None to ask git.
    """
    machine: Machine = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": device_name(device),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        machine |= {"cuda": str(torch.version.cuda), "driver": _driver_version()}
    else:
        machine |= {"threads": torch.get_num_threads()}
    return machine | {"python": platform.python_version(), "commit": commit or _commit()}


def device_name(device: torch.device) -> str:
    """Return the model name of the GPU or CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _driver_version() -> str:
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    answer = _output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return answer.splitlines()[0] if answer else "unknown"


def _commit() -> str:
    """Return the short commit hash of this package's checkout, marked if there are uncommitted changes."""
    # The log of this folder only: it is empty if the package is installed below the checkout of another project.
    package = str(Path(__file__).parents[1])
    if shutil.which("git") is None:
        return "unknown"
    commit = _output_of("git", "-C", package, "log", "-1", "--format=%h", "--", ".")
    if not commit:
        return "unknown"
    changed = _output_of("git", "-C", package, "status", "--porcelain", "--", ".")
    return commit + (" with changes" if changed else "")


def _output_of(*command: str) -> str:
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    return answer.stdout.strip() if answer.returncode == 0 else ""
