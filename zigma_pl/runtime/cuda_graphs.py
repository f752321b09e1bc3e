"""CUDA graphs: recording of the kernels that a call launches, to replay them with a single launch."""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zigma_pl.core.batch import Condition, Conditions

NUM_WARMUP_CALLS = 3


class Inputs(NamedTuple):
    """The arguments of a backbone; see `Backbone.forward`."""

    x_t: Tensor
    t: Tensor
    conditions: Conditions
    dropped: Mapping[str, Tensor]

    @classmethod
    def of(
        cls, x_t: Tensor, t: Tensor, conditions: Conditions | None, dropped: Mapping[str, Tensor] | None
    ) -> "Inputs":
        """Return the arguments with conditions sorted by name."""
        return cls(x_t, t, dict(sorted((conditions or {}).items())), dict(sorted((dropped or {}).items())))

    def named(self) -> dict[str, Tensor]:
        """Return all tensors by unique names."""
        found = {"x_t": self.x_t, "t": self.t}
        for name, condition in self.conditions.items():
            found[f"{name}.values"] = condition.values
            if condition.mask is not None:
                found[f"{name}.mask"] = condition.mask
        return found | {f"{name}.dropped": tensor for name, tensor in self.dropped.items()}

    def split(self, num_parts: int) -> "list[Inputs]":
        """Split the batch into parts of about equal size; the tensors are views."""
        bounds = [len(self.x_t) * index // num_parts for index in range(num_parts + 1)]
        return [self._rows(slice(*ends)) for ends in pairwise(bounds)]

    def _rows(self, rows: slice) -> "Inputs":
        conditions = {
            name: Condition(values[rows], None if mask is None else mask[rows])
            for name, (values, mask) in self.conditions.items()
        }
        dropped = {name: tensor[rows] for name, tensor in self.dropped.items()}
        return Inputs(self.x_t[rows], self.t[rows], conditions, dropped)

    def copies(self) -> "Inputs":
        """Return copies of all tensors."""
        conditions = {
            name: Condition(values.clone(), None if mask is None else mask.clone())
            for name, (values, mask) in self.conditions.items()
        }
        dropped = {name: tensor.clone() for name, tensor in self.dropped.items()}
        return Inputs(self.x_t.clone(), self.t.clone(), conditions, dropped)


def warm_up(call: Callable[[], Any]) -> None:
    """Call a function a few times on a side stream, so that one-time initialisation is not recorded."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(NUM_WARMUP_CALLS):
            call()
    torch.cuda.current_stream().wait_stream(stream)


def record(*calls: Callable[[], tuple[Tensor, ...]]) -> list[tuple[Callable[[], None], tuple[Tensor, ...]]]:
    """Record the kernels that each of the calls launches, after they were warmed up.

    Returns: for each call, a function that replays it, and its results, which each replay overwrites. The recordings
        share memory: replay them one after the other in this order; each may overwrite the results of later ones.
    """
    pool = torch.cuda.graph_pool_handle()
    recordings = []
    for call in calls:
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as one that pins memory of the next batch, are not restricted during the recording.
        with garbage_collection_paused(), torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            results = call()
        recordings.append((graph.replay, results))
    return recordings


@contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Collect garbage before the block but not within it, as freeing another CUDA graph would invalidate a recording.

    Since version 2.9, PyTorch leaves this to its callers (pull request 161037).
    """
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def fill(recorded: Inputs, inputs: Inputs) -> None:
    """Copy inputs with the same signature to the tensors that a recording reads."""
    given = inputs.named()
    for name, tensor in recorded.named().items():
        tensor.copy_(given[name])


def signature(inputs: Inputs, dtype: torch.dtype | None) -> tuple[Any, ...]:
    """Return the key of a recording: the dtype of autocast, and names, shapes and dtypes of the inputs."""
    return dtype, *((name, tensor.shape, tensor.dtype) for name, tensor in inputs.named().items())


def addresses(module: nn.Module) -> list[int]:
    """Return the addresses of parameters and buffers, to which recordings are bound."""
    return [tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())]


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """Return the dtype of autocast, None if autocast is disabled."""
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None


def uncached_autocast(device_type: str, dtype: torch.dtype | None) -> torch.autocast:
    """Return autocast without its cache of casts, which recordings would read after the cache is freed."""
    return torch.autocast(device_type, dtype, enabled=dtype is not None, cache_enabled=False)
