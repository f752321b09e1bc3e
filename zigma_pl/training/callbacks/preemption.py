"""Preemption: on a signal, save a checkpoint and exit with a status that asks the scheduler to run the job again."""

import os
import signal
from collections.abc import Callable
from multiprocessing import active_children
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch import callbacks

from zigma_pl.core.errors import PREEMPTED_STATUS, UserError
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.core.signals import Repeats, listen
from zigma_pl.training.callbacks.checkpoint import Checkpoint
from zigma_pl.training.lightning_private import accumulates, register_no_signal_handlers

_ASK_TO_BE_RUN_AGAIN = (signal.SIGTERM, signal.SIGUSR1)  # sent by schedulers


class Preempted(Exception):
    """Training was ended by a signal, after saving a checkpoint.

    Args:
        by: the signal.
        step: optimiser steps done.
    """

    def __init__(self, by: signal.Signals, step: int) -> None:
        super().__init__(f"preempted by {by.name} after step {step}")
        self.by = by
        self.step = step

    @property
    def status(self) -> int:
        """Exit status: 75 to request another run, or 128 + signal number for signals sent by users."""
        return PREEMPTED_STATUS if self.by in _ASK_TO_BE_RUN_AGAIN else 128 + self.by


# Lightning calls subclasses of its Checkpoint last, after all callbacks whose state a checkpoint contains.
class Preemption(callbacks.Checkpoint):
    """Save and exit on SIGTERM, SIGUSR1, SIGINT (Ctrl-C) or SIGHUP; exit immediately on a second signal.

    The current step is finished first, and so is a validation if its step has not been saved yet. SLURM sends a signal
    before the time limit if the job requests it: `#SBATCH --signal=USR1@120`. Commands other than `fit` exit
    immediately.

    Args:
        check_every_n_steps: with several processes, steps between checks whether any of them received a signal.
    """

    def __init__(self, check_every_n_steps: int = 10) -> None:
        check_whole_numbers("preemption", check_every_n_steps=check_every_n_steps)
        self.check_every_n_steps = check_every_n_steps
        self._signals = Repeats()
        self._trainer: L.Trainer | None = None  # while signals are handled
        self._restore_handlers: Callable[[], None] | None = None

    # --- signals ------------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Install the signal handlers for training; data loader workers inherit them and do not exit on signals."""
        register_no_signal_handlers(trainer)
        if stage == "fit":
            self._signals, self._trainer = Repeats(), trainer
            self._restore_handlers = listen(self._on_signal)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Restore the previous signal handlers."""
        self._stop_listening()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Restore the previous signal handlers."""
        self._stop_listening()

    def _stop_listening(self) -> None:
        if self._restore_handlers is not None:
            self._restore_handlers()
        self._trainer, self._restore_handlers = None, None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        assert self._trainer is not None
        is_first = self._signals.first is None
        if self._signals.is_second(number):
            self._end_at_once(number)
        if is_first and self._trainer.is_global_zero:
            name = signal.Signals(number).name
            # Not with print, which is not reentrant.
            os.write(2, f"\n{name}: saving after this step, then exiting; send it again to exit immediately\n".encode())

    def _end_at_once(self, number: int) -> None:
        launcher = None if self._trainer is None else self._trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signal.SIGKILL)
        for worker in active_children():
            worker.kill()
        os._exit(128 + number)

    # --- ends of steps ------------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Exit after a step, except the last, after which training ends anyway."""
        is_last = trainer.global_step == trainer.max_steps
        # Accumulated gradients would be lost between the micro-batches of a step.
        if is_last or accumulates(trainer):
            return
        if trainer.world_size == 1 or trainer.global_step % self.check_every_n_steps == 0:
            self._end_if_agreed(trainer)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Exit during a validation if its step has been saved; a resumed run validates again."""
        is_due = trainer.world_size == 1 or (batch_idx + 1) % self.check_every_n_steps == 0
        if is_due and trainer.state.fn == "fit" and _checkpoint_of(trainer).has_saved(trainer):
            self._end_if_agreed(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Exit after a validation."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and trainer.global_step != trainer.max_steps:
            self._end_if_agreed(trainer)

    def _end_if_agreed(self, trainer: L.Trainer) -> None:
        number = int(self._signals.first or 0)
        if trainer.world_size > 1:
            ours = torch.tensor(number, device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(ours, reduce_op="max"))
        if number:
            _checkpoint_of(trainer).save_now(trainer)
            raise Preempted(signal.Signals(number), trainer.global_step)


def _checkpoint_of(trainer: L.Trainer) -> Checkpoint:
    found: list[Any] = [callback for callback in trainer.callbacks if isinstance(callback, Checkpoint)]  # type: ignore[attr-defined]
    if not found:
        raise UserError("the Preemption callback needs a Checkpoint callback: add one to the trainer")
    return found[0]
