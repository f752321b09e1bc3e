"""Device memory and compiled code: current and peak allocation, and releasing both."""

import gc
import sys

import torch


def allocated_bytes(device: torch.device) -> int:
    """Return the bytes allocated on a CUDA device; 0 for other devices."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def num_device_allocations() -> int:
    """Return how often PyTorch's caching allocator has allocated memory from the CUDA device."""
    return torch.cuda.memory_stats().get("num_device_alloc", 0)


def reset_peak(device: torch.device) -> None:
    """Reset the peak memory of a CUDA device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int | None:
    """Return the peak bytes allocated on a CUDA device since reset_peak; None for other devices."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def release_memory(device: torch.device) -> None:
    """Free unreferenced objects and cached memory."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def forget_compiled_code() -> None:
    """Remove compiled code, as PyTorch limits the number of compiled variants of a function."""
    if "torch._dynamo" in sys.modules:  # otherwise nothing was compiled, and the import takes seconds
        torch.compiler.reset()
