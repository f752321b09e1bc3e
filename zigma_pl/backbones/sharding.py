"""A backbone's parameters spread over processes, each gathered for the time of its block's call; and as a whole."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# `torch.distributed.tensor` takes a second to import, which only those who shard should wait.


def shard(backbone: nn.Module, mesh: "DeviceMesh") -> None:
    """Shard, in place, every block of the backbone's lists, and what remains of it (FSDP2).

    Parameters stay float32: under autocast the numbers are those of one process. A second call does nothing.

    Args:
        backbone: whose direct children are lists of blocks, embeddings and the final layer.
        mesh: one-dimensional, of the processes that each hold a part.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if isinstance(backbone, FSDPModule):
        return
    for child in backbone.children():
        for block in child if isinstance(child, nn.ModuleList) else ():
            fully_shard(block, mesh=mesh)
    # By default the root keeps its own parameters whole after a call, which in validation no backward pass ends.
    fully_shard(backbone, mesh=mesh, reshard_after_forward=True)


def gathered(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state with its sharded tensors whole, on the CPU of process 0; elsewhere they are None.

    All processes have to call it.
    """

    def gather(value: Any) -> Any:
        if not is_sharded(value):
            return value
        whole = made_whole(value)
        return whole.cpu() if torch.distributed.get_rank() == 0 else None

    return {name: gather(value) for name, value in state.items()}


def load_whole(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load whole tensors into a module whose parameters are sharded; all processes have to call it, with equal states.

    Raises: KeyError for a tensor that the state does not have.
    """
    with torch.no_grad():
        for name, own in module.state_dict().items():
            own.copy_(scattered(state[name], own))


def scattered(whole: Any, like: Tensor) -> Any:
    """Return a tensor sharded as `like` is, if it is and their shapes are the same; else what was given."""
    if not is_sharded(like) or not isinstance(whole, Tensor) or whole.shape != like.shape:
        return whole
    from torch.distributed.tensor import distribute_tensor

    whole = whole.to(device=like.device, dtype=like.dtype)
    return distribute_tensor(whole, like.device_mesh, like.placements)  # type: ignore[attr-defined]


def made_whole(tensor: Tensor) -> Tensor:
    """Return a sharded tensor, or the sum or norm of sharded ones, whole; all processes have to call it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def is_sharded(value: Any) -> bool:
    """Whether the value is a tensor spread over processes."""
    return hasattr(value, "full_tensor")
