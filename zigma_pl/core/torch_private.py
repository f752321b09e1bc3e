"""All uses of private names of torch in this package, to be checked when torch is upgraded."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Tensors = tuple[Tensor, ...] | list[Tensor]


def copy_all(targets: Tensors, sources: Tensors) -> None:
    """Copy each source into its target, cast to the target's dtype, with one kernel on a GPU."""
    torch._foreach_copy_(targets, sources)


def cast_all(tensors: Tensors, dtype: torch.dtype) -> list[Tensor]:
    """Return copies of tensors of one dtype, cast to another dtype with one kernel on a GPU."""
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    if copies:
        copy_all(copies, tensors)
    return copies


def leaves_cast_once(outputs: Tensors, dtype: torch.dtype | None) -> list[Tensor]:
    """Return the leaves of the autograd graph of some outputs whose only use is a single cast to a dtype."""
    uses: dict[Any, list[Any]] = {}
    pending = [output.grad_fn for output in outputs]
    visited = set(pending)
    while pending:
        node = pending.pop()
        for parent, _ in () if node is None else node.next_functions:
            uses.setdefault(parent, []).append(node)
            if parent not in visited:
                visited.add(parent)
                pending.append(parent)

    def are_one_cast(nodes: list[Any]) -> bool:
        return [node.name() for node in nodes] == ["ToCopyBackward0"] and nodes[0]._input_metadata[0].dtype == dtype

    return [node.variable for node, nodes in uses.items() if hasattr(node, "variable") and are_one_cast(nodes)]


def allow_compiled_forms(count: int) -> None:
    """Let torch.compile keep at least `count` compiled versions of one function."""
    import torch._dynamo  # imported here because it takes seconds

    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, count)


def is_compiled(module: nn.Module) -> bool:
    """Return whether `module.compile` was called."""
    return module._compiled_call_impl is not None


def has_forward_hooks(module: nn.Module) -> bool:
    """Return whether forward hooks are registered on the module itself."""
    return bool(module._forward_hooks)


def hooks_of(module: nn.Module) -> list[Any]:
    """Return the forward and backward hooks that are registered on the module itself."""
    registered = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return [hook for hooks in registered for hook in hooks.values()]


def keep_from_ddp(module: nn.Module, names: Iterable[str]) -> None:
    """Make DistributedDataParallel ignore these parameters and buffers of the module."""
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, list(names))


def running_workers(loader: DataLoader[Any]) -> _BaseDataLoaderIter | None:
    """Return the running iterator of a loader with persistent workers, or None."""
    return loader._iterator


def forget_workers(loader: DataLoader[Any]) -> None:
    """Make a loader start new workers the next time it is iterated over."""
    loader._iterator = None


def shut_down_workers(batches: Iterator[Any]) -> bool:
    """Shut down the workers of a DataLoader's iterator, and return whether it had any.

    The garbage collector would shut them down too, but only after a timeout of 5 s.
    """
    if not isinstance(batches, _MultiProcessingDataLoaderIter):
        return False
    batches._shutdown_workers()
    return True


def raise_no_errors_from_signals() -> None:
    """Make DataLoaders report a dead worker only while waiting for a batch, within 5 s.

    By default, PyTorch's SIGCHLD handler raises an error at any point of the main process, such as while it saves a
    file.
    """
    signal_handling._SIGCHLD_handler_set = True


def workers_of(batches: Iterator[Any]) -> Sequence[Any]:
    """Return the worker processes of a DataLoader's iterator."""
    return batches._workers if isinstance(batches, _MultiProcessingDataLoaderIter) else ()


def add_summary(writer: "SummaryWriter", summary: Any, step: int) -> None:
    """Write a summary for which TensorBoard's writer has no method."""
    writer._get_file_writer().add_summary(summary, step)
