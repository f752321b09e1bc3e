"""Muon (Jordan et al., 2024): momentum in which each matrix is replaced by the nearest orthogonal one.

Matrices of the same shape are updated together, so a network of many equal layers needs few batched products per step.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_numbers, check_whole_numbers

AdjustLR = Literal["original", "match_rms_adamw"]
NUM_ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration; singular values end between about 0.7 and 1.2


class Muon(Optimizer):
    """Muon for matrices; use it in `ByRole`, which updates the other parameters with AdamW.

    Computes the same update as `torch.optim.Muon`. In addition, it updates matrices of the same shape together,
    supports sharded parameters (FSDP2), and skips a step if the flag `found_inf` on the device is set, like torch's
    fused AdamW.

    Args:
        params: matrices, or groups of them.
        lr: learning rate, >= 0.
        weight_decay: decoupled weight decay, >= 0.
        momentum: decay of the gradient's moving average, in [0, 1).
        nesterov: use Nesterov's momentum.
        adjust_lr_fn: factor on the learning rate of an (m, n) matrix: "original" is sqrt(max(1, m / n)),
            "match_rms_adamw" is 0.2 sqrt(max(m, n)), which allows learning rates tuned for AdamW (arXiv:2502.16982).
        num_iterations: Newton-Schulz iterations.
        dtype: type of the iteration's products.

    Raises: UserError for a parameter that is not a matrix, or an option out of range.
    """

    takes_found_inf: ClassVar[bool] = True  # see `training.callbacks.non_finite.skip_step`

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        adjust_lr_fn: AdjustLR = "match_rms_adamw",
        num_iterations: int = NUM_ITERATIONS,
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
    ) -> None:
        check_numbers("Muon", least=0, lr=lr, weight_decay=weight_decay)
        check_numbers("Muon", least=0, below=1, momentum=momentum)
        check_whole_numbers("Muon", most=100, num_iterations=num_iterations)
        options = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "adjust_lr_fn": adjust_lr_fn,
            "num_iterations": num_iterations,
            "dtype": dtype,
        }
        super().__init__(params, options)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise UserError(
                        f"Muon updates only matrices, got a parameter of shape {tuple(parameter.shape)}: use ByRole"
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        skip: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            stacks: dict[Any, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    stacks[_kind(parameter)].append(parameter)
            for parameters in stacks.values():
                self._update(parameters, group, skip)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any], skip: Tensor | None) -> None:
        """Update matrices of the same shape and sharding."""
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [_local(self.state[parameter]["momentum_buffer"]) for parameter in parameters]
        gradient = torch.stack([_local(parameter.grad) for parameter in parameters])
        average = torch.stack(buffers)
        weight = torch.tensor(1 - group["momentum"], device=gradient.device, dtype=gradient.dtype)
        if skip is not None:
            gradient = torch.where(skip.bool(), torch.zeros_like(gradient), gradient)
            weight = weight * (1 - skip)
        average = average.lerp(gradient, weight)
        torch._foreach_copy_(buffers, list(average))
        direction = gradient.lerp(average, group["momentum"]) if group["nesterov"] else average

        height, width = parameters[0].shape
        whole = _gathered(direction, parameters)
        update = _scattered(
            orthogonalised(whole, group["num_iterations"], getattr(torch, group["dtype"])).to(direction.dtype),
            parameters,
        )
        if group["adjust_lr_fn"] == "original":
            factor = max(1, height / width) ** 0.5
        else:
            factor = 0.2 * max(height, width) ** 0.5
        if skip is not None:
            update = torch.where(skip.bool(), torch.zeros_like(update), update)
        locals_ = [_local(parameter) for parameter in parameters]
        if group["weight_decay"]:
            decay = group["lr"] * group["weight_decay"]
            kept: Any = 1 - decay if skip is None else 1 - decay * (1 - skip)
            torch._foreach_mul_(locals_, kept)
        torch._foreach_add_(locals_, list(update), alpha=-group["lr"] * factor)


def orthogonalised(
    matrices: Tensor, num_iterations: int = NUM_ITERATIONS, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Approximate U V^T of each matrix U S V^T, (n, height, width), by a quintic Newton-Schulz iteration.

    The result is in `dtype`.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.to(dtype)
    x = x.mT if is_tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(num_iterations):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if is_tall else x


def _is_sharded(parameter: Tensor) -> bool:
    return hasattr(parameter, "full_tensor")


def _local(tensor: Any) -> Tensor:
    return tensor.to_local() if _is_sharded(tensor) else tensor


def _kind(parameter: Any) -> Any:
    """Return a key that is equal for matrices that can be stacked."""
    sharding = (parameter.device_mesh, tuple(parameter.placements)) if _is_sharded(parameter) else None
    return tuple(parameter.shape), _local(parameter).shape, parameter.dtype, parameter.device, sharding


def _gathered(stack: Tensor, parameters: list[Any]) -> Tensor:
    """Return whole matrices from the shards of all processes; every process must call this."""
    if not _is_sharded(parameters[0]):
        return stack
    from torch.distributed.tensor import DTensor

    like = parameters[0]
    options = {"shape": like.shape, "stride": like.stride(), "run_check": False}
    whole = [DTensor.from_local(part, like.device_mesh, like.placements, **options).full_tensor() for part in stack]
    return torch.stack(whole)


def _scattered(stack: Tensor, parameters: list[Any]) -> Tensor:
    """Return this process's shards of whole matrices that all processes have."""
    if not _is_sharded(parameters[0]):
        return stack
    from torch.distributed.tensor import DTensor, Replicate

    mesh, placements = parameters[0].device_mesh, parameters[0].placements
    parts = [
        DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False).redistribute(placements=placements)
        for whole in stack
    ]
    return torch.stack([part.to_local() for part in parts])
