"""The checkpoint callback: when checkpoints are saved, which ones are kept, and the state for exact resuming."""

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
    checkpoints_in,
    files_in,
    point_last_to,
    remove_unfinished,
)
from zigma_pl.training.checkpoints.resume import (
    RngState,
    check_random_state,
    random_states,
    set_random_state,
    validate_if_interrupted_before,
)
from zigma_pl.training.checkpoints.run_folder import run_folder

RESUME = "resume from the previous checkpoint, with a lower learning rate"


class Checkpoint(ModelCheckpoint):
    """Save every n steps and after the last one; keep the newest checkpoints, and optionally every n-th permanently.

    `last.ckpt` links to the newest checkpoint. An old one is removed only after a new one is on disk and `last.ckpt`
    links to it, so a run can be resumed with `fit --ckpt_path last` whenever it is killed.

    Args:
        dirpath: folder of the checkpoints; None for <log folder>/checkpoints.
        filename: file name without suffix; must contain {step}.
        every_n_train_steps: optimiser steps between checkpoints.
        keep_last: number of newest checkpoints to keep; two by default, in case one is damaged.
        keep_every_n_steps: permanently keep the checkpoints whose step is a multiple of this; None for none.

    Attributes:
        allow_changed: groups of options that may differ from those of the loaded checkpoint.
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
            save_top_k=-1,  # this class removes old checkpoints itself
            save_last="link",
            enable_version_counter=False,
        )
        self.keep_last = keep_last
        self.keep_every_n_steps = keep_every_n_steps
        self._random_states: list[RngState] = []  # of the checkpoint that training resumes from
        self._began_at = 0
        self._options: Options | None = None  # options of this run
        self.allow_changed: tuple[Group, ...] = ()

    # --- state --------------------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """A constant key, independent of the options, as there is no state to store."""
        return "Checkpoint"

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing, as the state is empty."""

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the random states of all processes, and the options that determine the results.

        Raises: UserError, on all processes, if a weight or the average is not finite; nothing is saved then.
        """
        parts = [checkpoint["state_dict"], checkpoint.get(RAW_WEIGHTS, {})]
        finite = not any(not_finite(part.values()) for part in parts)
        if not trainer.strategy.reduce_boolean_decision(finite):
            for part in parts:
                check_finite(part, f"the weights of step {trainer.global_step} were not saved", RESUME)
            raise UserError(
                f"the weights of step {trainer.global_step} were not saved, as they are not finite on another process: "
                f"{RESUME}"
            )
        if self._options is None:
            self._options = options_of(trainer, pl_module)
        checkpoint[OPTIONS] = self._options
        checkpoint[RANDOM_STATES] = random_states()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compare the options, and keep the random states for `on_train_start`.

        If training resumes from this run's newest checkpoint, `last.ckpt` is linked to it again: the run may have been
        killed before it was.
        """
        found = str(trainer.ckpt_path)
        if not trainer.strategy.reduce_boolean_decision(trainer.strategy.broadcast(found) == found):
            raise UserError(
                f"processes found different checkpoints, one of them {found}: give the path of one with --ckpt_path"
            )
        self._compare_options(trainer, pl_module, checkpoint)
        if trainer.state.fn == "fit":
            self._random_states = checkpoint.get(RANDOM_STATES, [])
            if len(self._random_states) == trainer.world_size:
                check_random_state(self._random_states[trainer.global_rank])
            self._last_global_step_saved = checkpoint["global_step"]
            if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
                self._repair_link(Path(found).resolve())

    def _repair_link(self, loaded: Path) -> None:
        folder = self.folder.resolve()
        if loaded == next(iter(checkpoints_in(folder)), None) and (folder / LAST_LINK).resolve() != loaded:
            point_last_to(loaded)

    def _compare_options(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if OPTIONS not in checkpoint:
            rank_zero_warn(
                f"checkpoint {trainer.ckpt_path} does not contain the options it was trained with, such as scan and "
                "objective: they are not compared with those of this run"
            )
            return
        self._options = options_of(trainer, module)
        changes = check_same(checkpoint[OPTIONS], self._options, self.allow_changed, trainer.ckpt_path)
        if trainer.state.fn != "fit":  # learning rate, batch size and so on only matter in training
            changes = [change for change in changes if change.startswith(tuple(f"{group}." for group in GROUPS))]
        if changes:
            rank_zero_warn(warning_of(changes, trainer.ckpt_path))

    # --- when to save -------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Determine the folder; before training, remove incomplete files of a killed run."""
        folder = run_folder(trainer) / CHECKPOINT_FOLDER
        if self.dirpath is None:
            self.dirpath = str(folder)
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.is_global_zero:
            remove_unfinished(self.folder)

    @property
    def folder(self) -> Path:
        """Folder of this run's checkpoints."""
        assert self.dirpath is not None
        return Path(self.dirpath)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the checkpoint's random states, and run a validation that was interrupted."""
        super().on_train_start(trainer, pl_module)
        self._began_at = trainer.global_step
        states, self._random_states = self._random_states, []
        if len(states) == trainer.world_size:
            set_random_state(states[trainer.global_rank])
        elif states:
            rank_zero_warn(
                f"the checkpoint was saved by {len(states)} processes and this run has {trainer.world_size}: global "
                "random states are not restored (random numbers of samples do not depend on them)"
            )
        if self._began_at:
            validate_if_interrupted_before(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save every n steps, and after the last step."""
        if trainer.global_step % self._every_n_train_steps == 0 or trainer.global_step == trainer.max_steps:
            self.save_now(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do nothing, as training has no epochs."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do nothing, as checkpoints are saved before validation."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last step of a run that was stopped before trainer.max_steps."""
        if trainer.global_step > self._began_at:
            self.save_now(trainer)

    def save_now(self, trainer: L.Trainer) -> None:
        """Save this step unless it is saved already, link `last.ckpt` to it, and remove old checkpoints."""
        if self._should_skip_saving_checkpoint(trainer):
            return
        name = self.format_checkpoint_name(self._monitor_candidates(trainer))
        self._save_checkpoint(trainer, name)
        self.best_model_path = self.last_model_path = name
        if trainer.is_global_zero:
            self._link_and_prune(trainer, Path(name))
        trainer.strategy.barrier()

    def has_saved(self, trainer: L.Trainer) -> bool:
        """Whether the current step has been saved, by this run or by the run that it resumes."""
        return self._last_global_step_saved == trainer.global_step

    # --- what to keep -------------------------------------------------------------------------------------------------

    def _link_and_prune(self, trainer: L.Trainer, newest: Path) -> None:
        point_last_to(newest)
        names = {path: self._name.fullmatch(path.stem) for path in files_in(self.folder)}
        steps = {path: int(name["step"]) for path, name in names.items() if name is not None}
        # Sorted by step, not by time. Checkpoints of higher steps, from another run, are kept.
        older = sorted((path for path in steps if steps[path] < steps[newest]), key=steps.__getitem__, reverse=True)
        for path in older[self.keep_last - 1 :]:
            if self.keep_every_n_steps is None or steps[path] % self.keep_every_n_steps:
                trainer.strategy.remove_checkpoint(str(path))


def _pattern_of(filename: str) -> re.Pattern[str]:
    """Return a pattern that matches names made from a template; other files are never removed."""
    parts = list(Formatter().parse(filename))
    if sum(field == "step" for _, field, _, _ in parts) != 1 or f"{filename}.ckpt" == LAST_LINK or "/" in filename:
        raise UserError(
            f"checkpoint.filename {filename!r} is invalid: give a file name that contains {{step}} exactly once, such "
            "as 'step_{step:08d}'"
        )
    pattern = ""
    for literal, field, _, _ in parts:
        pattern += re.escape(literal)
        pattern += "" if field is None else r"(?P<step>\d+)" if field == "step" else ".+?"
    return re.compile(pattern)
