"""One optimiser made of two: matrices go to the first, all other parameters to the second."""

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch.optim import Optimizer

from zigma_pl.training.optimizers.muon import Muon


class ByRole(Optimizer):
    """Optimise matrices with one optimiser and everything else with another.

    Lightning's automatic optimisation takes a single optimiser; this is one, with the parameter groups and the state of
    both, so learning-rate schedules, checkpoints and resuming work as usual.

    Args:
        params: parameter groups with a "role" each, as `zigma_pl.optimizers.parameter_groups` returns them.
        matrix: optimiser of the groups with role "matrix"; the default is Muon, with updates of the size of AdamW's.
        other: optimiser of the rest.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        matrix: OptimizerCallable = lambda p: Muon(p, lr=1e-3, weight_decay=0.0),
        other: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=5e-4, weight_decay=0.0),
    ) -> None:
        groups = list(params)
        super().__init__(groups, {})
        shares = [
            (build, [group for group in groups if (group["role"] == "matrix") == of_matrices])
            for build, of_matrices in ((matrix, True), (other, False))
        ]
        self.parts = [build(share) for build, share in shares if share]
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        self._share_with_parts()

    def step(self, closure: Any = None) -> Any:
        """Take one step of both."""
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
        """Take the state and groups of a checkpoint, and hand them to both."""
        super().__setstate__(state)
        if hasattr(self, "parts"):
            self._share_with_parts()

    def _share_with_parts(self) -> None:
        """Give each part its groups and the common state: the same objects, so that none has to be copied back."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state
