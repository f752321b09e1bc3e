"""CUDA graphs: what a call launches on the device, recorded once, and launched again as one."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

NUM_WARMUP_CALLS = 3

Call = Callable[[], tuple[Tensor, ...]]
Inputs = tuple[Tensor | None, ...]


def warm_up(call: Callable[[], Any]) -> None:
    """Call a few times beside the main stream, so that what is only set up once is no part of a recording."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(NUM_WARMUP_CALLS):
            call()
    torch.cuda.current_stream().wait_stream(stream)


def record(*calls: Call) -> list[tuple[Callable[[], None], tuple[Tensor, ...]]]:
    """Record what each of the calls, warmed up, launches.

    Returns: of each what launches it again, and the results, which are then written anew. The recordings share memory:
    they are to be replayed one after the other in this order, and each may write to what those after it have left.
    """
    pool = torch.cuda.graph_pool_handle()
    recordings = []
    for call in calls:
        graph = torch.cuda.CUDAGraph()
        # Meanwhile other threads, which pin the memory of the next batch, may do what this one may not.
        with garbage_kept(), torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            results = call()
        recordings.append((graph.replay, results))
    return recordings


@contextmanager
def garbage_kept() -> Iterator[None]:
    """Collect garbage now, and none meanwhile: to free another graph, say of an earlier network, would end a recording.

    PyTorch left this to its callers in version 2.9 (its pull request 161037).
    """
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def held(inputs: Inputs) -> Inputs:
    """Return copies of the inputs, for a recording to read whenever it is replayed."""
    return tuple(None if tensor is None else tensor.clone() for tensor in inputs)


def fill(held_inputs: Inputs, inputs: Inputs) -> None:
    """Write inputs of the same signature to where a recording reads them."""
    for static, given in zip(held_inputs, inputs, strict=True):
        if static is not None:
            assert given is not None
            static.copy_(given)


def signature(inputs: Inputs, dtype: torch.dtype | None) -> tuple[Any, ...]:
    """Return what a recording is for: the dtype of autocast, and the shapes and dtypes of the inputs."""
    return dtype, *(None if tensor is None else (tensor.shape, tensor.dtype) for tensor in inputs)


def addresses(module: nn.Module) -> list[int]:
    """Return where parameters and buffers lie, which recordings read and write; lists differ once any has moved."""
    return [tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())]


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """Return the dtype of the autocast that is on, None where it is off."""
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None


def lasting_autocast(device_type: str, dtype: torch.dtype | None) -> torch.autocast:
    """Return an autocast that remembers no casts: a recording would go on reading them after they are freed."""
    return torch.autocast(device_type, dtype, enabled=dtype is not None, cache_enabled=False)
