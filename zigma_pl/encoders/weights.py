"""Weights of frozen networks: one-line errors for failed loading, and hashes that identify them."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from zigma_pl.core.errors import UserError


@contextmanager
def loading(option: str, path: str | Path, remedy: str) -> Iterator[None]:
    """Convert errors of the library that loads a network into one line with option, path and remedy."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{option}: cannot load '{path}' ({reason}): {remedy}") from error


def hash_of_weights(network: nn.Module) -> str:
    """Return the SHA-256 of names and values of a network's parameters and buffers, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
