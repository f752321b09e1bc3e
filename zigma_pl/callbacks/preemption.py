"""What a training run does when its machine is wanted back: save, and end with a status that asks to be run again."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch import callbacks

from zigma_pl.callbacks.checkpoint import Checkpoint
from zigma_pl.errors import UserError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SECONDS_OF_ONE_SIGNAL = 2.0  # one signal may come twice: to all processes of a group, and passed on by their parent


class Preempted(Exception):
    """Training has ended because it was asked to by a signal; the checkpoint is saved.

    Args:
        by: the signal.
        step: optimiser steps done.
    """

    def __init__(self, by: signal.Signals, step: int) -> None:
        super().__init__(f"preempted by {by.name} after step {step}")
        self.by = by
        self.step = step


# A checkpoint callback to Lightning, so that it is called after those that checkpoints have the state of.
class Preemption(callbacks.Checkpoint):
    """Save and end with status 75 after SIGTERM or SIGUSR1; a second signal ends the run at once.

    The step that is under way is finished first, and a validation for which no checkpoint has been saved yet. SLURM
    sends a signal before the time is up where a job asks for it: `#SBATCH --signal=USR1@120`. Other commands than
    `fit` know nothing of this.

    Args:
        check_every_n_steps: several processes ask each other every so many steps whether one had a signal.
    """

    def __init__(self, check_every_n_steps: int = 10) -> None:
        if check_every_n_steps < 1:
            raise UserError(f"preemption.check_every_n_steps must be at least 1, got {check_every_n_steps}")
        self.check_every_n_steps = check_every_n_steps
        self._signal: signal.Signals | None = None
        self._came = 0.0
        self._process = 0  # that listens; 0 for none
        self._trainer: L.Trainer | None = None
        self._handlers_before: dict[signal.Signals, Any] = {}

    # --- signals ------------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Listen from here on; workers that load data inherit that they do not end by SIGUSR1."""
        if stage != "fit" or threading.current_thread() is not threading.main_thread():
            return
        self._signal, self._process, self._trainer = None, os.getpid(), trainer
        self._handlers_before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen alone: Lightning's own handler, put in place meanwhile, would end the run without saving."""
        if self._process:
            for number in SIGNALS:
                signal.signal(number, self._on_signal)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Listen no longer; nor shall Lightning, which saw this listening, put it back."""
        lightnings = trainer._signal_connector._original_handlers
        lightnings.update(
            {number: handler for number, handler in self._handlers_before.items() if number in lightnings}
        )
        self._stop_listening()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Listen no longer."""
        self._stop_listening()

    def _stop_listening(self) -> None:
        self._process, self._trainer = 0, None
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        self._handlers_before = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._process != os.getpid():
            return  # of a worker, which ends with the main process
        if self._signal is None:
            self._signal, self._came = signal.Signals(number), time.monotonic()
        elif number != self._signal or time.monotonic() - self._came > SECONDS_OF_ONE_SIGNAL:
            self._end_at_once(number)

    def _end_at_once(self, number: int) -> None:
        launcher = None if self._trainer is None else self._trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signal.SIGKILL)
        os._exit(128 + number)

    # --- ends of steps ------------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End after a step, but for the last, after which training ends anyhow."""
        is_last = trainer.global_step == trainer.max_steps
        # Between the micro-batches of a step, gradients would be lost.
        if is_last or trainer.fit_loop.epoch_loop._should_accumulate():
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
        """End within a validation whose step is saved; a resumed run validates again.

        One process alone: several have different numbers of batches, so they cannot ask each other here.
        """
        if trainer.state.fn == "fit" and trainer.world_size == 1 and _checkpoint_of(trainer).has_saved(trainer):
            self._end_if_agreed(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End after a validation."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and trainer.global_step != trainer.max_steps:
            self._end_if_agreed(trainer)

    def _end_if_agreed(self, trainer: L.Trainer) -> None:
        noted = self._signal is not None
        if not (noted if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(noted, all=False)):
            return
        _checkpoint_of(trainer).save_now(trainer)
        raise Preempted(self._signal or signal.SIGTERM, trainer.global_step)


def _checkpoint_of(trainer: L.Trainer) -> Checkpoint:
    found: list[Any] = [callback for callback in trainer.callbacks if isinstance(callback, Checkpoint)]  # type: ignore[attr-defined]
    if not found:
        raise UserError("preemption needs zigma_pl.callbacks.checkpoint.Checkpoint among the callbacks, to save by")
    return found[0]
