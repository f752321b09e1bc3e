"""Copies from the host's memory to a device."""

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor to `device`; from the host to a CUDA device without waiting for what is queued there.

    A copy from pageable memory would wait until the GPU has done all earlier work, and host and GPU could not work at
    the same time. One from pinned memory is queued like a kernel. The tensor may be dropped at once: pinned memory is
    handed out anew only when the copies from it are done. But one that is pinned already must not be written to again.
    """
    device = torch.device(device)
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)
