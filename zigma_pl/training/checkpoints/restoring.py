"""Restoring a trainer from a checkpoint, after checking that its states are compatible with the run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from zigma_pl.core.errors import UserError
from zigma_pl.core.records import one_line
from zigma_pl.training.checkpoints.content import STEP_PATH, check_like
from zigma_pl.training.lightning_private import CheckpointConnector


class CheckedConnector(CheckpointConnector):
    """Raises a UserError for incompatible checkpoints, instead of a traceback now or many steps later."""

    def restore_model_and_callbacks(self, path: Any = None, weights_only: bool | None = None) -> None:
        """Restore model and callbacks; errors name the checkpoint."""
        with self._named(path):
            super().restore_model_and_callbacks(path, weights_only)

    def restore_callbacks(self) -> None:
        """Check the states of the callbacks, and restore them."""
        states = self.loaded.get("callbacks", {})
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if callback.state_key in states:
                check_like(states[callback.state_key], callback.state_dict(), callback.state_key, negative=True)
        super().restore_callbacks()

    def restore_training_state(self) -> None:
        """Check the states of loops, optimisers and schedules, and restore them."""
        with self._named(self.path):
            if self.loaded and self.trainer.state.fn == "fit":
                self._check_training_state(self.loaded)
            super().restore_training_state()

    def _check_training_state(self, checkpoint: dict[str, Any]) -> None:
        missing = {"loops", "optimizer_states", "lr_schedulers"} - checkpoint.keys()
        if missing:
            raise ValueError(f"it has no {', '.join(sorted(missing))}, needed to resume training")
        loops, trainer = checkpoint["loops"], self.trainer
        check_like(loops["fit_loop"], trainer.fit_loop.state_dict(), "loops.fit_loop")
        step: Any = loops["fit_loop"]
        for name in STEP_PATH:
            step = step[name]
        if step != checkpoint["global_step"]:
            raise ValueError(f"global_step is {checkpoint['global_step']}, but its loops are at step {step}")
        states = checkpoint["optimizer_states"]
        check_like(states, [{"param_groups": _groups(optimizer)} for optimizer in trainer.optimizers], "optimizer")
        for optimizer, state in zip(trainer.optimizers, states, strict=True):
            _check_moments(optimizer, state["state"])
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        own = [scheduler.state_dict() for scheduler in schedulers]
        check_like(checkpoint["lr_schedulers"], own, "lr_schedulers")
        for scheduler, expected, found in zip(schedulers, own, checkpoint["lr_schedulers"], strict=True):
            replaced = [name for name in found.keys() - expected.keys() if hasattr(scheduler, name)]
            if replaced:
                raise ValueError(f"lr_schedulers has {replaced[0]}")

    @contextmanager
    def _named(self, path: Any) -> Iterator[None]:
        try:
            yield
        except (UserError, torch.OutOfMemoryError):
            raise
        except (
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            AssertionError,
            RuntimeError,
            OverflowError,
        ) as error:
            reason = one_line(str(error)) or type(error).__name__
            raise UserError(
                f"checkpoint {path} does not fit this run ({reason}): use the previous checkpoint"
            ) from error


def _groups(optimizer: Any) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = optimizer.state_dict()["param_groups"]
    return groups


def _check_moments(optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Any]]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, moments in state.items():
        if index >= len(parameters):
            raise ValueError(f"the optimizer state has parameter {index}, but there are {len(parameters)} parameters")
        for name in ("exp_avg", "exp_avg_sq"):
            if name in moments and getattr(moments[name], "shape", None) != parameters[index].shape:
                raise ValueError(f"{name} of parameter {index} differs in shape from the parameter")
