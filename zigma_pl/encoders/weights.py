"""Weights of frozen networks: one-line errors for failed loading, and hashes that identify them."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from zigma_pl.core.errors import UserError

WEIGHTS_SUFFIXES = (".safetensors", ".bin")


@contextmanager
def loading(option: str, path: str | Path, remedy: str) -> Iterator[None]:
    """Convert errors of the library that loads a network into one line with option, path and remedy."""
    try:
        yield
    except Exception as error:  # libraries raise many kinds for JSON and weights that they do not expect
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{option}: cannot load '{path}' ({reason}): {remedy}") from error


def check_size(build: Callable[[], nn.Module], folder: Path) -> None:
    """Raise a ValueError if a network has more weights than the weight files in a folder have bytes.

    Args:
        build: builds the network from its configuration; called with the meta device, which allocates no memory.
        folder: folder of the files.
    """
    num_bytes = sum(file.stat().st_size for file in folder.iterdir() if file.suffix in WEIGHTS_SUFFIXES)
    with torch.device("meta"):
        num_weights = sum(weight.numel() for weight in build().parameters())
    if num_weights > num_bytes:
        raise ValueError(f"config.json describes {num_weights:,} weights, the files have {num_bytes:,} bytes")


def check_complete(network: nn.Module, missing: Iterable[str]) -> None:
    """Raise a ValueError if weights are missing, which libraries initialise randomly, or are not finite.

    Args:
        network: the network that was loaded.
        missing: names of its weights that its files do not contain.
    """
    absent = sorted(missing)
    if absent:
        raise ValueError(f"{len(absent)} weights are missing, such as {absent[0]}")
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{name} contains NaN or infinity")


def hash_of_weights(network: nn.Module) -> str:
    """Return the SHA-256 of names and values of a network's parameters and buffers, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
