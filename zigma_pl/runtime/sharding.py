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


def whole_state(module: nn.Module) -> dict[str, Any]:
    """Return a module's state with its sharded tensors whole, on the CPU of process 0; elsewhere it is empty.

    All processes have to call it.
    """
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    return get_model_state_dict(module, options=_whole())


def load_whole(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load whole tensors into a module whose parameters are sharded; all processes have to call it, with equal states.

    Raises: RuntimeError for a tensor that the state does not have.
    """
    from torch.distributed.checkpoint.state_dict import set_model_state_dict

    set_model_state_dict(module, dict(state), options=_whole())


def load_whole_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimiser's state of one process, with whole tensors, where the module's parameters are sharded.

    Args:
        module: whose parameters are optimised.
        optimizer: in which the state is loaded.
        state: as its `state_dict` gives it in one process: parameters by number, in the order of the groups.
    """
    from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

    names = {parameter: name for name, parameter in module.named_parameters()}
    name_of = {
        number: names[parameter]
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
        for number, parameter in zip(saved["params"], own["params"], strict=True)
    }
    named: dict[str, Any] = {
        "state": {name_of[number]: moments for number, moments in state["state"].items()},
        "param_groups": [
            group | {"params": [name_of[number] for number in group["params"]]} for group in state["param_groups"]
        ],
    }
    set_optimizer_state_dict(module, optimizer, named, options=_whole())


def _whole() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True)


def made_whole(tensor: Tensor) -> Tensor:
    """Return a sharded tensor, or the sum or norm of sharded ones, whole; all processes have to call it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def is_sharded(value: Any) -> bool:
    """Whether the value is a tensor spread over processes."""
    return hasattr(value, "full_tensor")
