"""Roles of parameters, which determine weight decay and optimiser.

By default, roles follow from shapes. A module can override them in a class attribute:

    parameter_roles: ClassVar[dict[str, Role]] = {"A_log": "scan", "projection.weight": "projection"}
"""

from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

Role = Literal["matrix", "projection", "convolution", "embedding", "vector", "scan"]
"""Role of a parameter.

- matrix: a linear map inside the network.
- projection: the linear map at the network's input or output.
- convolution: the weights of a convolution.
- embedding: a table of learned tokens or positions.
- vector: a bias, gain or gate.
- scan: decay rates, skip weights and step sizes of a state-space layer.
"""

ROLES: tuple[Role, ...] = ("matrix", "projection", "convolution", "embedding", "vector", "scan")
DECAYED_ROLES: frozenset[Role] = frozenset({"matrix", "projection", "convolution"})


def parameter_roles(module: nn.Module) -> dict[str, Role]:
    """Return the role of each parameter of a module, by name.

    The role declared by the innermost module applies. Otherwise the weight of an `nn.Embedding` is an embedding, other
    parameters of two or more dimensions are matrices, and the rest are vectors.
    """
    roles: dict[str, Role] = {}
    for prefix, part in module.named_modules():  # outer modules first, so that inner ones override them
        for name, parameter in part.named_parameters(prefix, recurse=False):
            by_shape: Role = "matrix" if parameter.ndim >= 2 else "vector"
            roles.setdefault(name, "embedding" if isinstance(part, nn.Embedding) else by_shape)
        declared: dict[str, Role] = getattr(part, "parameter_roles", {})
        names = {name: f"{prefix}.{name}" if prefix else name for name in declared}
        own = dict(part.named_parameters())
        roles |= {names[name]: role for name, role in declared.items() if name in own}
    return roles


def parameter_groups(modules: Iterable[nn.Module]) -> list[dict[str, Any]]:
    """Return an optimiser's parameter groups, one for each role that occurs.

    Each has "params", "role" and, for roles without weight decay, "weight_decay": 0. Frozen parameters are excluded.
    """
    of_role: dict[Role, list[nn.Parameter]] = {role: [] for role in ROLES}
    for module in modules:
        roles = parameter_roles(module)
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                of_role[roles[name]].append(parameter)
    return [
        {"params": parameters, "role": role} | ({} if role in DECAYED_ROLES else {"weight_decay": 0.0})
        for role, parameters in of_role.items()
        if parameters
    ]
