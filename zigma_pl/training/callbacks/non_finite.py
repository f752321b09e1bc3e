"""Skip and count steps with a non-finite loss or gradient; after too many in a row, stop and dump the last one."""

import math
from typing import Any

import lightning as L
import torch
from torch import Tensor

from zigma_pl.core.batch import Batch
from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.training.callbacks.ema import EMA
from zigma_pl.training.callbacks.step_dump import dump_step
from zigma_pl.training.checkpoints.content import largest
from zigma_pl.training.module import GenerativeModule

# Steps that float16's loss scaling may skip to find its scale: it starts at 2^16 and is halved in each skipped step.
SKIPPED_BY_LOSS_SCALING = 16


class NonFiniteGuard(L.Callback):
    """Skip, on all processes together, an optimiser step whose loss or gradient is NaN or infinite.

    A skipped step does not change weights, average or AdamW's moments; learning rate and data advance. It is counted in
    `train/skipped_steps`. Whether to skip is computed on the device, from the norm of the gradients after reduction
    over all processes, and AdamW's fused kernel reads the flag there. Only the check every `check_every_n_steps` steps
    synchronises with the device. The run stops immediately if the average of the weights contains NaN or infinity.

    Args:
        max_in_a_row: stop the run after this many skipped steps in a row, and write a folder that reproduces the last
            of them (`callbacks/step_dump.py`) into the log folder. With float16's loss scaling, which skips steps until
            it has found its scale, 16 more are allowed.
        check_every_n_steps: optimiser steps between checks of the counter and the average. Skipped steps that are
            followed by a successful one before the next check do not stop the run.
    """

    def __init__(self, max_in_a_row: int = 10, check_every_n_steps: int = 10) -> None:
        check_whole_numbers("non_finite", max_in_a_row=max_in_a_row, check_every_n_steps=check_every_n_steps)
        self.max_in_a_row = max_in_a_row
        self.check_every_n_steps = check_every_n_steps
        self._in_a_row = torch.zeros(())
        self._total = torch.zeros((), dtype=torch.int64)
        self._micro_batches: list[Batch] = []  # of the current optimiser step
        self._stepped = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Move the counters to the device."""
        self._in_a_row, self._total = self._in_a_row.to(pl_module.device), self._total.to(pl_module.device)
        self._micro_batches, self._stepped = [], False

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Keep the batch until its optimiser step is done."""
        self._micro_batches.append(batch)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Set the optimiser's flag to skip the step, and count."""
        assert isinstance(pl_module, GenerativeModule)
        skipped = ~torch.isfinite(pl_module.gradient_norm())
        skip_step(optimizer, skipped)
        self._in_a_row = (self._in_a_row + 1) * skipped
        self._total = self._total + skipped
        self._stepped = True
        if pl_module.logs_this_step():
            pl_module.log("train/skipped_steps", self._total.float())

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Stop the run if too many steps have been skipped; all processes have the same counts and stop together."""
        if not self._stepped:
            return
        if trainer.global_step % self.check_every_n_steps == 0:
            self._check(trainer, pl_module)
        self._micro_batches, self._stepped = [], False

    def _check(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        averages = [average for one in trainer.callbacks if isinstance(one, EMA) for average in one.averages]  # type: ignore[attr-defined]
        # One tensor, to synchronise only once.
        watched = torch.stack([self._in_a_row, largest(averages)]) if averages else self._in_a_row.unsqueeze(0)
        in_a_row, *average = (float(number) for number in watched.cpu())
        if in_a_row >= self._limit(trainer):
            assert isinstance(pl_module, GenerativeModule)
            folder, suspect = dump_step(trainer, pl_module, self._micro_batches)
            raise UserError(
                f"loss or gradient was not finite in {int(in_a_row)} steps in a row, the last is step "
                f"{trainer.global_step}{suspect}: check the data (see README.txt in {folder}, which reproduces that "
                "step), lower the learning rate or raise model.lr_schedule.warmup_steps, and resume from the last "
                "checkpoint"
            )
        if not all(map(math.isfinite, average)):
            raise UserError(
                f"the average of the weights contains NaN or infinity after step {trainer.global_step}: resume from "
                "the last checkpoint, which was saved before that"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the counts."""
        return {"in_a_row": int(self._in_a_row), "total": int(self._total)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counts."""
        self._in_a_row = torch.tensor(float(state_dict["in_a_row"]))
        self._total = torch.tensor(state_dict["total"])

    def _limit(self, trainer: L.Trainer) -> int:
        return self.max_in_a_row + (SKIPPED_BY_LOSS_SCALING if trainer.precision == "16-mixed" else 0)


def skip_step(optimizer: torch.optim.Optimizer, skipped: Tensor) -> None:
    """Make the optimiser skip this step if `skipped`, a bool tensor on the device, is True."""
    if _takes_flag(optimizer):
        # Such optimisers read the flag of a gradient scaler: float32, 1 to skip.
        optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
    elif bool(skipped):
        optimizer.zero_grad(set_to_none=True)


def _takes_flag(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimiser reads `found_inf` on the device: fused kernels of torch, Muon, or both in `ByRole`."""
    parts = getattr(optimizer, "parts", [optimizer])
    return all(
        getattr(part, "takes_found_inf", False) or all(group.get("fused") for group in part.param_groups)
        for part in parts
    )
