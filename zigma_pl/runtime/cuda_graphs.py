"""CUDA graphs: what a call launches on the device, recorded once, and launched again as one."""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zigma_pl.core.batch import Condition, Conditions

NUM_WARMUP_CALLS = 3

Call = Callable[[], tuple[Tensor, ...]]


class Inputs(NamedTuple):
    """The arguments of a backbone; see Backbone.forward."""

    x_t: Tensor
    t: Tensor
    conditions: Conditions
    dropped: Mapping[str, Tensor]

    @classmethod
    def of(
        cls, x_t: Tensor, t: Tensor, conditions: Conditions | None, dropped: Mapping[str, Tensor] | None
    ) -> "Inputs":
        """Return the arguments with names in one order."""
        return cls(x_t, t, dict(sorted((conditions or {}).items())), dict(sorted((dropped or {}).items())))

    def named(self) -> dict[str, Tensor]:
        """Return all tensors by a name that tells where each belongs."""
        found = {"x_t": self.x_t, "t": self.t}
        for name, condition in self.conditions.items():
            found[f"{name}.values"] = condition.values
            if condition.mask is not None:
                found[f"{name}.mask"] = condition.mask
        return found | {f"{name}.dropped": tensor for name, tensor in self.dropped.items()}

    def copies(self) -> "Inputs":
        """Return copies of all tensors."""
        conditions = {
            name: Condition(values.clone(), None if mask is None else mask.clone())
            for name, (values, mask) in self.conditions.items()
        }
        dropped = {name: tensor.clone() for name, tensor in self.dropped.items()}
        return Inputs(self.x_t.clone(), self.t.clone(), conditions, dropped)


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


def fill(held: Inputs, inputs: Inputs) -> None:
    """Write inputs of the same signature to where a recording reads them."""
    given = inputs.named()
    for name, static in held.named().items():
        static.copy_(given[name])


def signature(inputs: Inputs, dtype: torch.dtype | None) -> tuple[Any, ...]:
    """Return what a recording is for: the dtype of autocast, and names, shapes and dtypes of the inputs."""
    return dtype, *((name, tensor.shape, tensor.dtype) for name, tensor in inputs.named().items())


def addresses(module: nn.Module) -> list[int]:
    """Return where parameters and buffers lie, which recordings read and write; lists differ once any has moved."""
    return [tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())]


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """Return the dtype of the autocast that is on, None where it is off."""
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None


def lasting_autocast(device_type: str, dtype: torch.dtype | None) -> torch.autocast:
    """Return an autocast that remembers no casts: a recording would go on reading them after they are freed."""
    return torch.autocast(device_type, dtype, enabled=dtype is not None, cache_enabled=False)
