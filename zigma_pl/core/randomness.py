"""Random numbers per sample, independent of the batch size and the number of processes.

Every draw is a function of (seed, stream, sample id) only. It is made on the CPU, so that it is also the same on every
device, like EDM's per-image seeds.
"""

import hashlib
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from zigma_pl.core.transfer import to_device


def sample_generator(seed: int, stream: str, sample_id: int) -> torch.Generator:
    """Return the CPU generator of one sample; `stream` separates uses of one seed ("train", "sample", ...)."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{sample_id}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def sample_generators(seed: int, stream: str, sample_ids: Iterable[int] | Tensor) -> list[torch.Generator]:
    """Return one CPU generator for each id in `sample_ids`, (B,) integers."""
    ids = sample_ids.tolist() if isinstance(sample_ids, Tensor) else sample_ids
    return [sample_generator(seed, stream, int(sample_id)) for sample_id in ids]


def randn_per_sample(
    generators: list[torch.Generator], shape: tuple[int, ...], *, device: torch.device | str = "cpu"
) -> Tensor:
    """Draw float32 standard normals (B, *shape), row i from generator i, and move them to `device`."""
    return _draw_per_sample(torch.randn, generators, shape, device)


def rand_per_sample(generators: list[torch.Generator], *, device: torch.device | str = "cpu") -> Tensor:
    """Draw float32 uniforms (B,) in [0, 1), element i from generator i, and move them to `device`."""
    return _draw_per_sample(torch.rand, generators, (), device)


def _draw_per_sample(
    draw: Callable[..., Tensor],
    generators: list[torch.Generator],
    shape: tuple[int, ...],
    device: torch.device | str,
) -> Tensor:
    in_pinned_memory = torch.device(device).type == "cuda"  # so that `to_device` need not pin a copy
    numbers = torch.empty(len(generators), *shape, pin_memory=in_pinned_memory)
    for row, generator in zip(numbers, generators, strict=True):
        draw(shape, generator=generator, out=row)
    return to_device(numbers, device)
