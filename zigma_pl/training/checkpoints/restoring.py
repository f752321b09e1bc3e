"""How a trainer takes up a checkpoint: its states are compared with the run's own before they replace them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from zigma_pl.core.errors import UserError
from zigma_pl.core.records import one_line
from zigma_pl.training.checkpoints.content import STEP_PATH, check_like
from zigma_pl.training.lightning_private import CheckpointConnector


class CheckedConnector(CheckpointConnector):
    """Restores as inherited; what does not fit ends with one line instead of a traceback, now or many steps later."""

    def restore_model_and_callbacks(self, path: Any = None, weights_only: bool | None = None) -> None:
        """Name the checkpoint where it does not fit."""
        with self._named(path):
            super().restore_model_and_callbacks(path, weights_only)

    def restore_callbacks(self) -> None:
        """Compare the callbacks' states with those of this run, and take them up."""
        states = self.loaded.get("callbacks", {})
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if callback.state_key in states:
                check_like(states[callback.state_key], callback.state_dict(), callback.state_key, negative=True)
        super().restore_callbacks()

    def restore_training_state(self) -> None:
        """Compare loops, optimisers and schedules with those of this run, and take them up."""
        with self._named(self.path):
            if self.loaded and self.trainer.state.fn == "fit":
                self._check_training_state(self.loaded)
            super().restore_training_state()

    def _check_training_state(self, checkpoint: dict[str, Any]) -> None:
        missing = {"loops", "optimizer_states", "lr_schedulers"} - checkpoint.keys()
        if missing:
            raise ValueError(f"it lacks {', '.join(sorted(missing))}, which training needs")
        loops, trainer = checkpoint["loops"], self.trainer
        check_like(loops["fit_loop"], trainer.fit_loop.state_dict(), "loops.fit_loop")
        step: Any = loops["fit_loop"]
        for name in STEP_PATH:
            step = step[name]
        if step != checkpoint["global_step"]:
            raise ValueError(f"global_step is {checkpoint['global_step']}, but its loops have done {step} steps")
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
                f"checkpoint {path} does not fit this run ({reason}): use the one saved before it"
            ) from error


def _groups(optimizer: Any) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = optimizer.state_dict()["param_groups"]
    return groups


def _check_moments(optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Any]]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, moments in state.items():
        if number >= len(parameters):
            raise ValueError(f"the optimizer has parameter {number} of {len(parameters)}")
        for name in ("exp_avg", "exp_avg_sq"):
            if name in moments and getattr(moments[name], "shape", None) != parameters[number].shape:
                raise ValueError(f"{name} of parameter {number} has another shape than the parameter")
