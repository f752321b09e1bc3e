"""Exponential moving average (EMA) of the weights, used for validation, previews and checkpoints."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_numbers, check_whole_numbers
from zigma_pl.runtime.sharding import load_whole, shard, whole_state
from zigma_pl.training.callbacks.power_averages import PowerAverages, Stored
from zigma_pl.training.checkpoints.content import POWER_AVERAGES, RAW_WEIGHTS
from zigma_pl.training.checkpoints.run_folder import run_folder
from zigma_pl.training.checkpoints.snapshots import remove_later_snapshots
from zigma_pl.training.module import GenerativeModule

_Weights = tuple[Tensor, ...] | list[Tensor]


class _Average(AveragedModel):
    """The averaged weights. Buffers are constants and are not copied in each step."""

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Update the average; unlike the base class, without copying the count to the GPU, which would synchronise."""
        if self.n_averaged == 0:
            for average, weight in zip(self.module.parameters(), model.parameters(), strict=True):
                average.copy_(weight)
        else:
            assert self.multi_avg_fn is not None
            copied = _copied_parameters(model)
            averages: list[Tensor] = []
            weights: list[Tensor] = []
            for average, weight in zip(self.module.parameters(), model.parameters(), strict=True):
                if weight in copied:
                    average.copy_(weight)
                else:
                    averages.append(average)
                    weights.append(weight)
            self.multi_avg_fn(averages, weights, self.n_averaged)
        self.n_averaged += 1


def _copied_parameters(model: nn.Module) -> set[Tensor]:
    """Return the parameters that are copied instead of averaged: those of loss terms with `averaged` False."""
    assert isinstance(model, GenerativeModule)
    terms = [term for term in model.loss_terms.values() if not term.averaged]
    return {parameter for term in terms for parameter in term.parameters()}


class EMA(EMAWeightAveraging):
    """Average the weights as average = decay * average + (1 - decay) * weights after each optimiser step.

    Buffers, such as the integer visit orders, are not averaged. Before the first update there is no average, and
    validation, checkpoints and the end of training use the raw weights.

    Args:
        decay: weight of the old average, at least 0 and below 1.
        starting_at_step: optimiser step at which the average starts, with the weights of that step.
        warmup: use a decay of min(decay, (1 + n) / (10 + n)) after n updates, so that the average of a short run is
            not dominated by the initial weights.
        snapshot_every_n_steps: besides, update two power-function averages, and write snapshots of them after each
            multiple of this many steps and after the last step, from which `python -m zigma_pl average` reconstructs
            averages of any width. Takes 8 bytes per parameter on the device and in checkpoints, and 4 per snapshot.
            None for no snapshots.
    """

    def __init__(
        self,
        decay: float = 0.9999,
        starting_at_step: int = 0,
        warmup: bool = False,
        snapshot_every_n_steps: int | None = None,
    ) -> None:
        check_numbers("ema", least=0, below=1, decay=decay)
        check_whole_numbers("ema", least=0, starting_at_step=starting_at_step)
        check_whole_numbers("ema", snapshot_every_n_steps=snapshot_every_n_steps)
        super().__init__(decay=decay, use_buffers=False, update_starting_at_step=starting_at_step)
        self.decay = decay
        self._warmup = warmup
        self._swapped = False
        self.snapshot_every_n_steps = snapshot_every_n_steps
        self._power: PowerAverages | None = None
        self._stored_power: Stored | None = None  # of the checkpoint that training resumes from
        self._run_folder = Path()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Copy the module before it is moved to its device or sharded."""
        if stage == "fit":
            self._average_model = _Average(pl_module, multi_avg_fn=self._average, use_buffers=False)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Move the average to the device of the weights; its update count stays on the CPU, as it is read often."""
        assert self._average_model is not None
        self._average_model.module.to(pl_module.device)
        if pl_module.device_mesh is not None:
            average: Any = self._average_model.module
            shard(average.backbone, pl_module.device_mesh["data_parallel"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Create or restore the power-function averages, if there are to be snapshots."""
        stored, self._stored_power = self._stored_power, None
        if self.snapshot_every_n_steps is None:
            return
        copied = _copied_parameters(pl_module)
        named = pl_module.named_parameters(remove_duplicate=False)
        self._power = PowerAverages({name: one for name, one in named if one.requires_grad and one not in copied})
        if trainer.global_step:
            if stored is None:
                raise UserError(
                    f"checkpoint {trainer.ckpt_path} has no power-function averages, as its run had no snapshots: "
                    "resume without ema.snapshot_every_n_steps"
                )
            self._power.load(stored, trainer.global_step)
        self._run_folder = run_folder(trainer)
        if trainer.is_global_zero:
            remove_later_snapshots(self._run_folder, trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the averages after an optimiser step, and write snapshots."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        step, interval = trainer.global_step, self.snapshot_every_n_steps
        if self._power is None or interval is None or step == self._power.step:
            return
        self._power.update(step)
        if step % interval == 0 or step == trainer.max_steps:
            self._power.write(self._run_folder, trainer.is_global_zero)

    def _average(self, averages: _Weights, weights: _Weights, num_averaged: Tensor | int) -> None:
        n = int(num_averaged)  # on the CPU
        decay = min(self.decay, (1 + n) / (10 + n)) if self._warmup else self.decay
        get_ema_multi_avg_fn(decay)(averages, weights, num_averaged)  # one kernel for all parameters

    @property
    def averages(self) -> list[Tensor]:
        """The averaged weights on their device, empty before the first update."""
        return list(self._average_model.module.parameters()) if self.has_average and self._average_model else []

    @property
    def has_average(self) -> bool:
        """Whether the average has been updated at least once."""
        return self._average_model is not None and int(self._average_model.n_averaged) > 0

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Swap the average into the module, if there is one yet."""
        if self.has_average:
            super().on_validation_epoch_start(trainer, pl_module)
            self._swapped = True

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Swap the raw weights back."""
        if self._swapped:
            super().on_validation_epoch_end(trainer, pl_module)
            self._swapped = False

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do nothing yet, as the last checkpoint is saved afterwards and needs the raw weights."""

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave the average in the module after training, if there is one."""
        if stage == "fit" and self.has_average:
            self._copy_average_to_current(pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the average as "state_dict" and the raw weights as "current_model_state"; only raw without average."""
        if self.has_average:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)
            if pl_module.device_mesh is not None:
                assert self._average_model is not None
                checkpoint["state_dict"] = whole_state(self._average_model.module)
        if self._power is not None:
            checkpoint[POWER_AVERAGES] = self._power.state(trainer.is_global_zero)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the average when training resumes; evaluation and sampling load "state_dict" directly."""
        self._stored_power = checkpoint.get(POWER_AVERAGES)
        if self._average_model is None or "averaging_state" not in checkpoint:
            return
        if pl_module.device_mesh is None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
        else:
            load_whole(self._average_model.module, checkpoint["state_dict"])
            load_whole(pl_module, checkpoint[RAW_WEIGHTS])
            self._average_model.n_averaged.copy_(checkpoint["averaging_state"]["n_averaged"])
