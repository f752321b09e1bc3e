"""Memory of the device and of compiled code: what is allocated, what was the peak, and how to give it back."""

import gc
import sys

import torch


def allocated_bytes(device: torch.device) -> int:
    """Return what is allocated on a CUDA device now; 0 on others."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def num_device_allocations() -> int:
    """Return how often memory was asked of the CUDA device, not found among what PyTorch keeps."""
    return torch.cuda.memory_stats().get("num_device_alloc", 0)


def reset_peak(device: torch.device) -> None:
    """Let the peak of a CUDA device's memory begin anew."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int | None:
    """Return the most that was allocated on a CUDA device since reset_peak; None on others."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def release_memory(device: torch.device) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def forget_compiled_code() -> None:
    """Make room for the next contestants: PyTorch keeps few compiled forms of one function."""
    if "torch._dynamo" in sys.modules:  # else nothing was compiled, and importing it takes seconds
        torch.compiler.reset()
