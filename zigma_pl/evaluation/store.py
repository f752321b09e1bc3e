"""Samples on disk, in chunks of fixed sample ids that are there whole or not at all.

<folder>/sampling.json            what the samples depend on, for people to read; the folder's name is its hash
<folder>/chunk-00000000.npz       pictures, sample ids, how often the network was called; named by the first id

Axes: n samples of a chunk, F frames.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.core.files import UNFINISHED, written_whole
from zigma_pl.data.npy import read_npz

IDENTITY_NAME = "sampling.json"


class Chunk(NamedTuple):
    """What a file holds.

    pictures: (n, 3 or 1, height, width) uint8, of clips (n, F, 3, height, width).
    sample_ids: (n,) int64.
    num_network_calls: for each of the samples; they were drawn together.
    """

    pictures: Tensor
    sample_ids: Tensor
    num_network_calls: int


class SampleStore:
    """The samples of one checkpoint, drawn in one way.

    Args:
        folder: of all stores of a row.
        identity: everything that the samples depend on, as plain values; another identity has a folder of its own.
        chunk_size: samples in a chunk; it is part of the identity.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any], chunk_size: int) -> None:
        self.identity = {**identity, "samples_drawn_together": chunk_size}
        self.chunk_size = chunk_size
        text = json.dumps(self.identity, sort_keys=True)
        self.folder = Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:16]

    def open(self) -> None:
        """Make the folder, say in it what it is, and remove what killed runs have left; for one process alone."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(f"{UNFINISHED}*"):
            leftover.unlink(missing_ok=True)
        if not (self.folder / IDENTITY_NAME).is_file():
            with written_whole(self.folder / IDENTITY_NAME) as file:
                file.write(json.dumps(self.identity, indent=1).encode())

    def numbers(self, num_samples: int, rank: int = 0, world_size: int = 1) -> range:
        """Return which chunks of the first `num_samples` samples are a process's share."""
        return range(rank, -(-num_samples // self.chunk_size), world_size)

    def sample_ids(self, number: int) -> range:
        """Return the ids in a chunk: always all of them, also where not all are asked for."""
        return range(number * self.chunk_size, (number + 1) * self.chunk_size)

    def path(self, number: int) -> Path:
        """Return where a chunk is, or will be."""
        return self.folder / f"chunk-{number * self.chunk_size:08d}.npz"

    def has(self, number: int) -> bool:
        """Whether a chunk is there; one that is, but cannot be read, is an error and not drawn again.

        Raises:
            UserError: the file is damaged, as far as its size and ids tell.
        """
        path = self.path(number)
        if not path.is_file():
            return False
        self._load(number, "sample_ids")
        return True

    def write(self, number: int, chunk: Chunk) -> None:
        """Add a chunk."""
        assert chunk.sample_ids.tolist() == list(self.sample_ids(number))
        assert chunk.pictures.dtype == torch.uint8
        with written_whole(self.path(number)) as file:
            np.savez(
                file,
                pictures=chunk.pictures.numpy(),
                sample_ids=chunk.sample_ids.numpy(),
                num_network_calls=np.array(chunk.num_network_calls),
            )

    def read(self, number: int) -> Chunk:
        """Return a chunk, its checksums compared.

        Raises:
            UserError: it is missing or damaged.
        """
        pictures, sample_ids, calls = self._load(number, "pictures", "sample_ids", "num_network_calls")
        return Chunk(torch.from_numpy(pictures), torch.from_numpy(sample_ids), int(calls))

    def read_first(self, number: int, num_samples: int) -> Chunk:
        """Return a chunk without its samples from id `num_samples` on."""
        chunk = self.read(number)
        kept = max(0, num_samples - number * self.chunk_size)
        return Chunk(chunk.pictures[:kept], chunk.sample_ids[:kept], chunk.num_network_calls)

    def num_network_calls(self, num_samples: int) -> float:
        """Return the mean over the first `num_samples`; samplers that choose their own steps differ between chunks."""
        calls = 0
        for number in self.numbers(num_samples):
            ids, of_chunk = self._load(number, "sample_ids", "num_network_calls")
            calls += int(of_chunk) * int((ids < num_samples).sum())
        mean = calls / num_samples
        return int(mean) if mean.is_integer() else mean

    def _load(self, number: int, *names: str) -> list[np.ndarray]:
        path = self.path(number)
        try:
            found = dict(zip(names, read_npz(path, *names), strict=True))
            if found["sample_ids"].tolist() != list(self.sample_ids(number)):
                raise ValueError("other sample ids than its name says")
            self._check(found)
        except FileNotFoundError as error:
            raise UserError(
                f"{path}: is missing; if processes run on several machines, scorer.samples_dir has to be a folder that "
                "all of them see"
            ) from error
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: is damaged ({error}); remove it, and it is drawn again") from error
        return [found[name] for name in names]

    def _check(self, found: Mapping[str, np.ndarray]) -> None:
        pictures, calls = found.get("pictures"), found.get("num_network_calls")
        if pictures is not None and (
            pictures.dtype != np.uint8 or pictures.ndim not in (4, 5) or len(pictures) != self.chunk_size
        ):
            raise ValueError(f"pictures are {pictures.dtype} {pictures.shape}")
        if calls is not None and (calls.dtype.kind != "i" or calls.ndim or calls < 0):
            raise ValueError(f"num_network_calls is {calls.dtype} {calls.shape}")
