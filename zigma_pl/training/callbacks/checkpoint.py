"""When a checkpoint is saved, which ones are kept, and what in them makes a resumed run exact."""

import re
from pathlib import Path
from string import Formatter
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.training.callbacks.checkpoint_options import GROUPS, Group, Options, check_same, options_of, warning_of
from zigma_pl.training.checkpoints.content import OPTIONS, RANDOM_STATES, RAW_WEIGHTS, check_finite, not_finite
from zigma_pl.training.checkpoints.newest import (
    CHECKPOINT_FOLDER,
    LAST_LINK,
    files_in,
    point_last_to,
    remove_unfinished,
)
from zigma_pl.training.checkpoints.resume import (
    State,
    check_random_state,
    random_states,
    set_random_state,
    validate_if_interrupted_before,
)
from zigma_pl.training.checkpoints.run_folder import run_folder

RESUME = "resume from the checkpoint saved before it, with a lower model.learning_rate"


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

    Attributes:
        allow_changed: groups of options that may differ from those of the checkpoint that is loaded.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        filename: str = "step_{step:08d}",
        every_n_train_steps: int = 5000,
        keep_last: int = 2,
        keep_every_n_steps: int | None = None,
    ) -> None:
        check_whole_numbers("checkpoint", every_n_train_steps=every_n_train_steps, keep_last=keep_last)
        check_whole_numbers("checkpoint", keep_every_n_steps=keep_every_n_steps)
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
        self._options: Options | None = None  # of this run
        self.allow_changed: tuple[Group, ...] = ()

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
        """Add the state of every process's random numbers, and the options that decide the numbers.

        Raises: UserError, on all processes, where a weight or the average is not finite: nothing is saved then.
        """
        parts = [checkpoint["state_dict"], checkpoint.get(RAW_WEIGHTS, {})]
        finite = not any(not_finite(part.values()) for part in parts)
        if not trainer.strategy.reduce_boolean_decision(finite):
            for part in parts:
                check_finite(part, f"weights of step {trainer.global_step} are not saved", RESUME)
            raise UserError(f"weights of step {trainer.global_step} are not saved: another process's are NaN: {RESUME}")
        if self._options is None:
            self._options = options_of(trainer, pl_module)
        checkpoint[OPTIONS] = self._options
        checkpoint[RANDOM_STATES] = random_states()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compare the options, and keep what `on_train_start` puts in place."""
        found = str(trainer.ckpt_path)
        if not trainer.strategy.reduce_boolean_decision(trainer.strategy.broadcast(found) == found):
            raise UserError(f"processes have found different checkpoints, one of them {found}: name one by --ckpt_path")
        self._compare_options(trainer, pl_module, checkpoint)
        if trainer.state.fn == "fit":
            self._random_states = checkpoint.get(RANDOM_STATES, [])
            if len(self._random_states) == trainer.world_size:
                check_random_state(self._random_states[trainer.global_rank])
            self._last_global_step_saved = checkpoint["global_step"]

    def _compare_options(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if OPTIONS not in checkpoint:
            rank_zero_warn(
                f"checkpoint {trainer.ckpt_path} does not say which options it was trained with, such as scan and "
                "objective: they are not compared with those of this run"
            )
            return
        self._options = options_of(trainer, module)
        changes = check_same(checkpoint[OPTIONS], self._options, self.allow_changed, trainer.ckpt_path)
        if trainer.state.fn != "fit":  # learning rate, batch size and the like then decide nothing
            changes = [change for change in changes if change.startswith(tuple(f"{group}." for group in GROUPS))]
        if changes:
            rank_zero_warn(warning_of(changes, trainer.ckpt_path))

    # --- when to save -------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the folder; before training, remove what a killed run has left in it half written."""
        folder = run_folder(trainer) / CHECKPOINT_FOLDER
        if self.dirpath is None:
            self.dirpath = str(folder)
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
        names = {path: self._name.fullmatch(path.stem) for path in files_in(self.folder)}
        steps = {path: int(name["step"]) for path, name in names.items() if name is not None}
        # The step decides and not the clock; a checkpoint of a higher step, from another run, is left alone.
        older = sorted((path for path in steps if steps[path] < steps[newest]), key=steps.__getitem__, reverse=True)
        for path in older[self.keep_last - 1 :]:
            if self.keep_every_n_steps is None or steps[path] % self.keep_every_n_steps:
                trainer.strategy.remove_checkpoint(str(path))


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
