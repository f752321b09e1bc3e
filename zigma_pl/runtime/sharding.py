"""Sharding of a backbone's parameters over processes with FSDP2, and conversion from and to full tensors."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# `torch.distributed` modules are imported in the functions that need them, since they take a second to import.


def shard(backbone: nn.Module, mesh: "DeviceMesh") -> None:
    """Shard, in place, every block of a backbone and then the rest of it (FSDP2).

    Parameters stay float32, so that under autocast the results are those of a single process. A second call has no
    effect.

    Args:
        backbone: a network whose children are lists of blocks, embeddings and the final layer.
        mesh: one-dimensional mesh of the processes over which parameters are sharded.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if isinstance(backbone, FSDPModule):
        return
    for child in backbone.children():
        for block in child if isinstance(child, nn.ModuleList) else ():
            fully_shard(block, mesh=mesh)
    # By default the root module would keep its parameters gathered until a backward pass, which validation never runs.
    fully_shard(backbone, mesh=mesh, reshard_after_forward=True)


def whole_state(module: nn.Module) -> dict[str, Any]:
    """Return a module's state dict with full tensors on the CPU of process 0; it is empty in other processes.

    All processes must call it.
    """
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    return get_model_state_dict(module, options=_whole())


def load_whole(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dict with full tensors into a sharded module; all processes must call it with equal states.

    Raises: RuntimeError if the state lacks a tensor.
    """
    from torch.distributed.checkpoint.state_dict import set_model_state_dict

    set_model_state_dict(module, dict(state), options=_whole())


def load_whole_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load the state of an unsharded optimiser, with full tensors, for a sharded module.

    Args:
        module: the module whose parameters are optimised.
        optimizer: the optimiser that receives the state.
        state: a `state_dict` of the optimiser from a single process, with parameters by index in the order of groups.
    """
    from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

    names = {parameter: name for name, parameter in module.named_parameters()}
    name_of = {
        index: names[parameter]
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
        for index, parameter in zip(saved["params"], own["params"], strict=True)
    }
    named: dict[str, Any] = {
        "state": {name_of[index]: moments for index, moments in state["state"].items()},
        "param_groups": [
            group | {"params": [name_of[index] for index in group["params"]]} for group in state["param_groups"]
        ],
    }
    set_optimizer_state_dict(module, optimizer, named, options=_whole())


def _whole() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True)


def made_whole(tensor: Tensor) -> Tensor:
    """Return a sharded tensor, or a sum or norm of sharded tensors, as a full tensor; all processes must call it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def copy_whole(target: Tensor, whole: Tensor) -> None:
    """Copy a full tensor, which all processes have, into a tensor that may be sharded."""
    if is_sharded(target):
        from torch.distributed.tensor import DTensor, Replicate

        sharded: Any = target
        replicated = [Replicate()] * sharded.device_mesh.ndim
        given = DTensor.from_local(whole.to(target.device), sharded.device_mesh, replicated, run_check=False)
        whole = given.redistribute(placements=sharded.placements)
    target.copy_(whole)


def is_sharded(value: Any) -> bool:
    """Return whether a value is a sharded tensor."""
    return hasattr(value, "full_tensor")
