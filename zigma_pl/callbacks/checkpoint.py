"""When a checkpoint is saved, which ones are kept, and what in them makes a resumed run exact."""

import re
from pathlib import Path
from string import Formatter
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from zigma_pl.checkpoints.newest import LAST_LINK, checkpoints_in, point_last_to, remove_unfinished
from zigma_pl.checkpoints.resume import State, random_states, set_random_state, validate_if_interrupted_before
from zigma_pl.errors import UserError

RANDOM_STATES = "random_states"  # of a checkpoint: by rank


class Checkpoint(ModelCheckpoint):
    """Save every so many steps and after the last one; keep the newest few, and some for ever.

    `last.ckpt` points to the newest. An old checkpoint is removed only when a new one is on disk and `last.ckpt` points
    to it, so a run that is killed at any moment can go on: `fit --ckpt_path last`.

    Args:
        dirpath: folder of the checkpoints; None for <log folder>/checkpoints.
        filename: name without its ending, with {step}.
        every_n_train_steps: optimiser steps between checkpoints.
        keep_last: how many of the newest to keep; two, so that one may be damaged.
        keep_every_n_steps: checkpoints of the multiples of so many steps are kept for ever; None for none of them.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        filename: str = "step_{step:08d}",
        every_n_train_steps: int = 5000,
        keep_last: int = 2,
        keep_every_n_steps: int | None = None,
    ) -> None:
        if every_n_train_steps < 1 or keep_last < 1 or (keep_every_n_steps is not None and keep_every_n_steps < 1):
            raise UserError(
                "checkpoint.every_n_train_steps, checkpoint.keep_last and checkpoint.keep_every_n_steps must be at "
                "least 1; keep_every_n_steps may be null"
            )
        self._name = _pattern_of(filename)
        super().__init__(
            dirpath=dirpath,
            filename=filename,
            auto_insert_metric_name=False,
            every_n_train_steps=every_n_train_steps,
            save_top_k=-1,  # what is removed, and when, is decided here
            save_last="link",
            enable_version_counter=False,
        )
        self.keep_last = keep_last
        self.keep_every_n_steps = keep_every_n_steps
        self._random_states: list[State] = []  # of the checkpoint that training goes on from
        self._began_at = 0

    # --- state --------------------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """The same whatever the options: what there is to know is on the disk."""
        return "Checkpoint"

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take nothing."""

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the state of every process's random numbers."""
        checkpoint[RANDOM_STATES] = random_states(trainer)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what `on_train_start` puts in place."""
        found = str(trainer.ckpt_path)
        if not trainer.strategy.reduce_boolean_decision(trainer.strategy.broadcast(found) == found):
            raise UserError(f"processes have found different checkpoints, one of them {found}: name one by --ckpt_path")
        if trainer.state.fn == "fit":
            self._random_states = checkpoint.get(RANDOM_STATES, [])
            self._last_global_step_saved = checkpoint["global_step"]

    # --- when to save -------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the folder; before training, remove what a killed run has left in it half written."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.is_global_zero:
            remove_unfinished(self.folder)

    @property
    def folder(self) -> Path:
        """Where the checkpoints of this run are."""
        assert self.dirpath is not None
        return Path(self.dirpath)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on with the checkpoint's random numbers, where every process has its own, and with its validation."""
        super().on_train_start(trainer, pl_module)
        self._began_at = trainer.global_step
        states, self._random_states = self._random_states, []
        if len(states) == trainer.world_size:
            set_random_state(states[trainer.global_rank])
        elif states:
            rank_zero_warn(
                f"the checkpoint is of {len(states)} processes and this run has {trainer.world_size}: random numbers "
                "that are not those of a sample start anew"
            )
        if self._began_at:
            validate_if_interrupted_before(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time to, and after the last step."""
        if trainer.global_step % self._every_n_train_steps == 0 or trainer.global_step == trainer.max_steps:
            self.save_now(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do nothing: training is counted in steps."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do nothing: what precedes a validation has been saved before it."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last step of a run that ended by something else than trainer.max_steps."""
        if trainer.global_step > self._began_at:
            self.save_now(trainer)

    def save_now(self, trainer: L.Trainer) -> None:
        """Save this step, point `last.ckpt` to it, and remove what need not be kept; nothing if it is saved already."""
        if self._should_skip_saving_checkpoint(trainer):
            return
        name = self.format_checkpoint_name(self._monitor_candidates(trainer))
        self._save_checkpoint(trainer, name)
        self.best_model_path = self.last_model_path = name
        if trainer.is_global_zero:
            self._link_and_prune(trainer, Path(name))
        trainer.strategy.barrier()

    def has_saved(self, trainer: L.Trainer) -> bool:
        """Whether the step that training has come to is saved, in this run or the one that it goes on from."""
        return self._last_global_step_saved == trainer.global_step

    # --- what to keep -------------------------------------------------------------------------------------------------

    def _link_and_prune(self, trainer: L.Trainer, newest: Path) -> None:
        point_last_to(newest)
        older = [path for path in checkpoints_in(self.folder) if path != newest and self._name.fullmatch(path.stem)]
        for path in older[self.keep_last - 1 :]:
            if not self._is_kept_for_ever(path):
                trainer.strategy.remove_checkpoint(str(path))

    def _is_kept_for_ever(self, path: Path) -> bool:
        name = self._name.fullmatch(path.stem)
        assert name is not None
        return self.keep_every_n_steps is not None and int(name["step"]) % self.keep_every_n_steps == 0


def _pattern_of(filename: str) -> re.Pattern[str]:
    """Return a pattern for names that a template gives: what it does not match is none of ours to remove."""
    parts = list(Formatter().parse(filename))
    if sum(field == "step" for _, field, _, _ in parts) != 1 or f"{filename}.ckpt" == LAST_LINK or "/" in filename:
        raise UserError(
            f"checkpoint.filename: {filename!r} must be the name of a file that has {{step}} in it once, such as "
            "'step_{step:08d}'"
        )
    pattern = ""
    for literal, field, _, _ in parts:
        pattern += re.escape(literal)
        pattern += "" if field is None else r"(?P<step>\d+)" if field == "step" else ".+?"
    return re.compile(pattern)
