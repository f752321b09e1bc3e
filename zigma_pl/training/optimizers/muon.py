"""Muon (Jordan et al., 2024): momentum in which each matrix is replaced by the nearest orthogonal one.

Matrices of the same shape are updated together, so a network of many equal layers needs few batched products per step.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.sgd import sgd

from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_numbers, check_whole_numbers
from zigma_pl.runtime.sharding import is_sharded

AdjustLR = Literal["original", "match_rms_adamw"]
NUM_ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration; singular values end between about 0.7 and 1.2
MAX_STACK = 2**26  # elements orthogonalised at once; bounds the temporary memory to about 10 bytes for each


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
        """Take one step. It does not wait for the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        skip: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                if "momentum_buffer" not in self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            update_averages(self._averages(parameters), _gradients(parameters), group["momentum"], skip)
            for alike in _stackable(parameters):
                self._update(alike, group, skip)
        return loss

    def _averages(self, parameters: list[Tensor]) -> list[Tensor]:
        return [_local(self.state[parameter]["momentum_buffer"]) for parameter in parameters]

    def _update(self, parameters: list[Tensor], group: dict[str, Any], skip: Tensor | None) -> None:
        """Update matrices of the same shape and sharding, whose averages are up to date."""
        directions = stacked_directions(
            self._averages(parameters),
            _gradients(parameters) if group["nesterov"] else None,
            group["momentum"],
            getattr(torch, group["dtype"]),
        )
        whole = _gathered(directions, parameters[0])
        updates = _scattered(orthogonalised(whole, group["num_iterations"]), parameters[0], len(parameters))
        height, width = parameters[0].shape
        if group["adjust_lr_fn"] == "original":
            factor = max(1, height / width) ** 0.5
        else:
            factor = 0.2 * max(height, width) ** 0.5
        apply_updates([_local(p) for p in parameters], updates, group["lr"], factor, group["weight_decay"], skip)


# The elementwise operations are steps of stochastic gradient descent, whose fused kernel updates a list of tensors in
# one launch and skips the update on the device if the flag is set.


def update_averages(averages: list[Tensor], gradients: list[Tensor], momentum: float, skip: Tensor | None) -> None:
    """Set each average to momentum * average + (1 - momentum) * gradient, in place.

    That is average - (1 - momentum) * (average - gradient): a step with weight decay 1 along the negative gradient.
    """
    _descend(averages, gradients, 1 - momentum, weight_decay=1.0, maximize=True, skip=skip)


def stacked_directions(
    averages: list[Tensor], gradients: list[Tensor] | None, momentum: float, dtype: torch.dtype
) -> Tensor:
    """Return the directions of n matrices up to a positive factor, (n, height, width).

    Args:
        averages: moving averages of the gradients.
        gradients: the gradients with Nesterov's momentum, None without.
        momentum: decay of the averages.
        dtype: type of the result.
    """
    stack = torch.empty(len(averages), *averages[0].shape, dtype=dtype, device=averages[0].device)
    if gradients is None:
        torch._foreach_copy_(list(stack), averages)
    else:
        for direction, average, gradient in zip(stack, averages, gradients, strict=True):
            # Without the factor 1 - momentum, one kernel reads both, adds in float32, and writes `dtype`.
            torch.add(gradient, average, alpha=momentum / (1 - momentum), out=direction)
    return stack


def apply_updates(
    parameters: list[Tensor], updates: Tensor, lr: float, factor: float, weight_decay: float, skip: Tensor | None
) -> None:
    """Subtract lr * (factor * update + weight_decay * parameter) from each parameter, in place."""
    typed = list(updates.to(parameters[0].dtype))
    _descend(parameters, typed, lr * factor, weight_decay=weight_decay / factor, maximize=False, skip=skip)


def _descend(
    values: list[Tensor], gradients: list[Tensor], lr: float, weight_decay: float, maximize: bool, skip: Tensor | None
) -> None:
    sgd(
        values,
        gradients,
        [None] * len(values),
        fused=True,
        found_inf=skip,
        weight_decay=weight_decay,
        momentum=0.0,
        lr=lr,
        dampening=0.0,
        nesterov=False,
        maximize=maximize,
    )


def orthogonalised(matrices: Tensor, num_iterations: int = NUM_ITERATIONS) -> Tensor:
    """Approximate U V^T of each matrix U S V^T, (n, height, width), by a quintic Newton-Schulz iteration.

    An iteration multiplies x by p(x x^T), where p(g) = a + b g + c g^2. Iterations are done in pairs: after the first,
    x x^T is p g p, so the second polynomial needs no product of the larger size. With three at once, rounding errors of
    bfloat16 raise singular values of some matrices so far that training diverges. Tall matrices are multiplied from the
    right, so no matrix is transposed in memory. The norm, too, is that of x x^T.

    The products and the result have the type of `matrices`.
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x, num_done = matrices, 0
    while num_done < num_iterations:
        gram = x.mT @ x if is_tall else x @ x.mT
        if num_done == 0:
            squared_norm = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None].clamp(min=1e-14)
            gram /= squared_norm
        multiplier = polynomial = _polynomial(gram)
        if num_done + 1 < num_iterations:
            multiplier = _polynomial(polynomial @ gram @ polynomial) @ polynomial
        if num_done == 0:
            multiplier /= squared_norm.sqrt()
        x = x @ multiplier if is_tall else multiplier @ x
        num_done += 2
    return x


def _polynomial(gram: Tensor) -> Tensor:
    a, b, c = COEFFICIENTS
    polynomial = gram.clone()
    polynomial.diagonal(dim1=-2, dim2=-1).add_(a / b)  # here, as it would cancel digits of the result
    return polynomial.baddbmm_(gram, gram, beta=b, alpha=c)


def _stackable(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Split matrices into lists that are updated together: of the same shape and sharding, and not too large."""
    stacks: dict[Any, list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        stacks[_kind(parameter)].append(parameter)
    for alike in stacks.values():
        num_parts = math.ceil(len(alike) * alike[0].numel() / MAX_STACK)
        size = math.ceil(len(alike) / num_parts)
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


def _kind(parameter: Any) -> Any:
    """Return a key that is equal for matrices that can be stacked."""
    sharding = (parameter.device_mesh, tuple(parameter.placements)) if is_sharded(parameter) else None
    return tuple(parameter.shape), parameter.dtype, parameter.device, sharding


def _local(tensor: Any) -> Tensor:
    return tensor.to_local() if is_sharded(tensor) else tensor


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [_local(parameter.grad) for parameter in parameters]


def _gathered(stack: Tensor, like: Any) -> Tensor:
    """Exchange shards of all matrices for a part of the matrices, each of them whole; every process must call this."""
    return _exchanged(stack, like, len(stack), gather=True) if is_sharded(like) else stack


def _scattered(stack: Tensor, like: Any, num_matrices: int) -> Tensor:
    """Exchange whole matrices for shards of all matrices, the reverse of `_gathered`."""
    return _exchanged(stack, like, num_matrices, gather=False) if is_sharded(like) else stack


def _exchanged(stack: Tensor, like: Any, num_matrices: int, gather: bool) -> Tensor:
    from torch.distributed.tensor import DTensor, Shard

    sharded = [Shard(one.dim + 1) if one.is_shard() else one for one in like.placements]
    whole = [Shard(0) if one.is_shard() else one for one in like.placements]
    source, target = (sharded, whole) if gather else (whole, sharded)
    shape, stride = (num_matrices, *like.shape), (like.numel(), like.shape[1], 1)
    stacked = DTensor.from_local(stack, like.device_mesh, source, run_check=False, shape=shape, stride=stride)  # type: ignore[arg-type]
    return stacked.redistribute(placements=target).to_local()
