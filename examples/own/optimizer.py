"""The optimiser Lion (arXiv:2302.06675), and a learning-rate schedule that decays as 1 / sqrt(step)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from zigma_pl.optimizers import LearningRateSchedule


class Lion(torch.optim.Optimizer):
    """Updates parameters by the sign of an interpolation between momentum and gradient.

    Args:
        params: parameters or parameter groups.
        lr: learning rate, about a fifth of AdamW's.
        betas: coefficients of the momentum in the update, and of its running average.
        weight_decay: decoupled weight decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform one optimisation step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in (p for p in group["params"] if p.grad is not None):
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                direction = torch.lerp(parameter.grad, momentum, group["betas"][0]).sign()
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
                momentum.lerp_(parameter.grad, 1 - group["betas"][1])
        return loss


class InverseSqrt(LearningRateSchedule):
    """Linear warm-up, then decay as 1 / sqrt(step)."""

    def after_warmup(self, step: int, num_steps: int) -> float:
        """Return the factor on the learning rate, without the warm-up."""
        return (max(1, self.warmup_steps) / max(1, self.warmup_steps, step)) ** 0.5
