"""Samples on disk, in chunks of fixed sample ids that are written atomically.

<folder>/sampling.json            everything that the samples depend on; the folder is named by its hash
<folder>/chunk-00000000.npz       images, sample ids and number of network calls; named by the first id

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
    """The content of a chunk file.

    pictures: (n, 3 or 1, height, width) uint8, for clips (n, F, 3, height, width).
    sample_ids: (n,) int64.
    num_network_calls: number of network calls for the batch.
    """

    pictures: Tensor
    sample_ids: Tensor
    num_network_calls: int


class SampleStore:
    """The samples of one checkpoint, generated with one set of options.

    Args:
        folder: parent folder of a run's stores.
        identity: everything that the samples depend on, as plain values; each identity has its own subfolder.
        chunk_size: samples per chunk; part of the identity.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any], chunk_size: int) -> None:
        self.identity = {**identity, "samples_drawn_together": chunk_size}
        self.chunk_size = chunk_size
        text = json.dumps(self.identity, sort_keys=True)
        self.folder = Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:16]

    def open(self) -> None:
        """Create the folder with its description, and remove incomplete files; must be called on one process only."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(f"{UNFINISHED}*"):
            leftover.unlink(missing_ok=True)
        if not (self.folder / IDENTITY_NAME).is_file():
            with written_whole(self.folder / IDENTITY_NAME) as file:
                file.write(json.dumps(self.identity, indent=1).encode())

    def chunk_indices(self, num_samples: int, rank: int = 0, world_size: int = 1) -> range:
        """Return the indices of a process's chunks of the first `num_samples` samples."""
        return range(rank, -(-num_samples // self.chunk_size), world_size)

    def sample_ids(self, chunk_index: int) -> range:
        """Return the ids in a chunk; chunks are always full."""
        return range(chunk_index * self.chunk_size, (chunk_index + 1) * self.chunk_size)

    def path(self, chunk_index: int) -> Path:
        """Return the path of a chunk."""
        return self.folder / f"chunk-{chunk_index * self.chunk_size:08d}.npz"

    def has(self, chunk_index: int) -> bool:
        """Whether a chunk exists; a damaged chunk raises an error instead of being generated again.

        Raises:
            UserError: the file is damaged, judging by its size and ids.
        """
        path = self.path(chunk_index)
        if not path.is_file():
            return False
        self._load(chunk_index, "sample_ids")
        return True

    def write(self, chunk_index: int, chunk: Chunk) -> None:
        """Write a chunk."""
        assert chunk.sample_ids.tolist() == list(self.sample_ids(chunk_index))
        assert chunk.pictures.dtype == torch.uint8
        with written_whole(self.path(chunk_index)) as file:
            np.savez(
                file,
                pictures=chunk.pictures.numpy(),
                sample_ids=chunk.sample_ids.numpy(),
                num_network_calls=np.array(chunk.num_network_calls),
            )

    def read(self, chunk_index: int) -> Chunk:
        """Read a chunk, verifying its checksums.

        Raises:
            UserError: it is missing or damaged.
        """
        pictures, sample_ids, calls = self._load(chunk_index, "pictures", "sample_ids", "num_network_calls")
        return Chunk(torch.from_numpy(pictures), torch.from_numpy(sample_ids), int(calls))

    def read_first(self, chunk_index: int, num_samples: int) -> Chunk:
        """Read those samples of a chunk whose id is below `num_samples`."""
        chunk = self.read(chunk_index)
        kept = max(0, num_samples - chunk_index * self.chunk_size)
        return Chunk(chunk.pictures[:kept], chunk.sample_ids[:kept], chunk.num_network_calls)

    def num_network_calls(self, num_samples: int) -> float:
        """Return the mean over the first `num_samples`; with adaptive samplers it differs between chunks."""
        calls = 0
        for index in self.chunk_indices(num_samples):
            ids, of_chunk = self._load(index, "sample_ids", "num_network_calls")
            calls += int(of_chunk) * int((ids < num_samples).sum())
        mean = calls / num_samples
        return int(mean) if mean.is_integer() else mean

    def _load(self, chunk_index: int, *names: str) -> list[np.ndarray]:
        path = self.path(chunk_index)
        try:
            found = dict(zip(names, read_npz(path, *names), strict=True))
            if found["sample_ids"].tolist() != list(self.sample_ids(chunk_index)):
                raise ValueError("its sample ids do not match its name")
            self._check(found)
        except FileNotFoundError as error:
            raise UserError(
                f"{path} does not exist: if processes run on several machines, set scorer.samples_dir to a folder that "
                "all of them can access"
            ) from error
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}): remove it to generate it again") from error
        return [found[name] for name in names]

    def _check(self, found: Mapping[str, np.ndarray]) -> None:
        pictures, calls = found.get("pictures"), found.get("num_network_calls")
        if pictures is not None and (
            pictures.dtype != np.uint8 or pictures.ndim not in (4, 5) or len(pictures) != self.chunk_size
        ):
            raise ValueError(f"pictures are {pictures.dtype} {pictures.shape}")
        if calls is not None and (calls.dtype.kind != "i" or calls.ndim or calls < 0):
            raise ValueError(f"num_network_calls is {calls.dtype} {calls.shape}")
