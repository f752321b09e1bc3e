"""An optimiser that combines two: one for matrices, and one for all other parameters."""

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch.optim import Optimizer

from zigma_pl.training.optimizers.muon import Muon


class ByRole(Optimizer):
    """Optimises matrices with one optimiser and all other parameters with another.

    Lightning's automatic optimisation supports only one optimiser. This one has the parameter groups and the state of
    both, so learning rate schedules, checkpoints and resuming work as usual.

    Args:
        params: parameter groups with a "role" each, as returned by `zigma_pl.optimizers.parameter_groups`.
        matrix: optimiser of the groups with role "matrix"; by default Muon, with updates scaled to the size of AdamW's.
        other: optimiser of all other groups.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        matrix: OptimizerCallable = lambda p: Muon(p, lr=1e-3, weight_decay=0.0),
        other: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=5e-4, weight_decay=0.0),
    ) -> None:
        groups = list(params)
        super().__init__(groups, {})
        selected = [
            (build, [group for group in groups if (group["role"] == "matrix") == of_matrices])
            for build, of_matrices in ((matrix, True), (other, False))
        ]
        self.parts = [build(part) for build, part in selected if part]
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        self._share_with_parts()

    def step(self, closure: Any = None) -> Any:
        """Take one step with both optimisers."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            if hasattr(self, "found_inf"):
                part.found_inf = self.found_inf  # type: ignore[attr-defined]
            part.step()
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore state and groups, and pass them to both optimisers."""
        super().__setstate__(state)
        if hasattr(self, "parts"):
            self._share_with_parts()

    def _share_with_parts(self) -> None:
        """Let both optimisers use the groups and the state of this one, as the same objects."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state
