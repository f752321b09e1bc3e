"""Copies from host memory to a device."""

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor to `device`; copies from the host to a CUDA device are asynchronous.

    A copy from pageable memory would wait until the GPU has finished all queued work. A copy from pinned memory is
    queued like a kernel. The source may be freed at once, as PyTorch reuses pinned memory only after the copies from it
    have finished. A source that was already pinned must not be modified before that.
    """
    device = torch.device(device)
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)
