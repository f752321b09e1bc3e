"""Code that computes in the types of its tensors, whatever autocast would choose."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which autocast converts no tensors on this device; torch.compile can trace it."""
    # `torch.amp.is_autocast_available` is not traced by PyTorch 2.11.
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
