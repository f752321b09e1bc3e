"""Exponential moving average (EMA) of the weights, used for validation, previews and checkpoints."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from zigma_pl.core.ranges import check_numbers, check_whole_numbers
from zigma_pl.runtime.sharding import load_whole, shard, whole_state
from zigma_pl.training.checkpoints.content import RAW_WEIGHTS
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
    """

    def __init__(self, decay: float = 0.9999, starting_at_step: int = 0, warmup: bool = False) -> None:
        check_numbers("ema", least=0, below=1, decay=decay)
        check_whole_numbers("ema", least=0, starting_at_step=starting_at_step)
        super().__init__(decay=decay, use_buffers=False, update_starting_at_step=starting_at_step)
        self.decay = decay
        self._warmup = warmup
        self._swapped = False

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

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the average when training resumes; evaluation and sampling load "state_dict" directly."""
        if self._average_model is None or "averaging_state" not in checkpoint:
            return
        if pl_module.device_mesh is None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
        else:
            load_whole(self._average_model.module, checkpoint["state_dict"])
            load_whole(pl_module, checkpoint[RAW_WEIGHTS])
            self._average_model.n_averaged.copy_(checkpoint["averaging_state"]["n_averaged"])
