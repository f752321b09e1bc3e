"""How the trainer writes and reads checkpoints: whole or not at all, verified, and never executing anything."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.core.files import written_whole
from zigma_pl.training.checkpoints.archive import damage_of, foreign_object
from zigma_pl.training.checkpoints.content import FORMAT_KEY, FORMAT_VERSION, RAW_WEIGHTS, check_content, check_finite

Weights = Literal["average", "raw"]
_MALFORMED = (  # what torch and pickle raise for a file that is none of theirs
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    EOFError,
    OverflowError,
    pickle.UnpicklingError,
)
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.")  # which torch.compile and FSDP put into names


class WholeFileIO(CheckpointIO):
    """One file, that appears under its name only when all of it is safely on disk.

    A file from before there were format versions is read as it is: it lacks only the states of random numbers.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises: UserError when it cannot be written, as on a full disk; there is then no file of this name, or still the
            one that was there before.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with written_whole(path) as file:
                torch.save({FORMAT_KEY: FORMAT_VERSION, **checkpoint}, file)
        except (OSError, RuntimeError) as error:
            reason = _system_error_in(error)
            if reason is None:
                raise
            raise UserError(
                f"checkpoint {path} cannot be written ({reason.strerror}): make room there, or set checkpoint.dirpath "
                "to another place; the checkpoint before it is whole, and `fit --ckpt_path last` goes on from it"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint as `read_checkpoint` does, with `weights_only=True` whatever is asked for.

        Raises: UserError also where a weight, raw or averaged, or an optimiser's moment is not finite.
        """
        checkpoint = read_checkpoint(Path(path), map_location or "cpu")
        moments = {
            f"{name} of parameter {number}": value
            for state in checkpoint.get("optimizer_states", [])
            for number, of_parameter in state["state"].items()
            for name, value in of_parameter.items()
            if isinstance(value, Tensor)
        }
        for tensors in (checkpoint["state_dict"], checkpoint.get(RAW_WEIGHTS, {}), moments):
            check_finite(tensors, f"checkpoint {path}", "use one that was saved before")
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint's file."""
        Path(path).unlink(missing_ok=True)


def _system_error_in(error: BaseException | None) -> OSError | None:
    """Return the system's own error: torch's writer raises another one while it clears up after it."""
    while error is not None and not (isinstance(error, OSError) and error.errno):
        error = error.__cause__ or error.__context__
    return error


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a training checkpoint; nothing in it executes.

    Returns: its content, with names of parameters as in a run that was neither compiled nor distributed.

    Raises: UserError, of one line, when it is missing, damaged, no training checkpoint, holds more than tensors and
        plain values, or was written by a newer zigma_pl.
    """
    check_readable(path)
    try:
        foreign = foreign_object(path)
        checkpoint: Any = None if foreign else torch.load(path, map_location=map_location, weights_only=True)
    except torch.OutOfMemoryError:
        raise
    except _MALFORMED as error:
        raise UserError(
            f"checkpoint {path} is damaged, or no checkpoint of zigma_pl: use the one saved before it"
        ) from error
    if foreign:
        raise UserError(f"checkpoint {path} holds {foreign}, and is not loaded: use one that zigma_pl wrote")
    check_content(checkpoint, path)
    assert isinstance(checkpoint, dict)
    for name in ("state_dict", RAW_WEIGHTS):
        if name in checkpoint:
            checkpoint[name] = _plain_names(checkpoint[name])
    return checkpoint


def weights_of(checkpoint: Mapping[str, Any], weights: Weights, path: Path | str, otherwise: str) -> dict[str, Tensor]:
    """Return the averaged weights of a checkpoint or the raw ones; without an average, `state_dict` holds the latter.

    Args:
        checkpoint: what `read_checkpoint` gave.
        weights: which.
        path: the file, for the error.
        otherwise: how to ask for the raw ones, for the error.

    Raises: UserError where there is no average to give.
    """
    has_average = RAW_WEIGHTS in checkpoint
    if weights == "average" and not has_average:
        raise UserError(
            f"checkpoint {path} holds no average of the weights (it was saved before ema.starting_at_step, or without "
            f"averaging): take a later one, or {otherwise}"
        )
    return checkpoint[RAW_WEIGHTS if weights == "raw" and has_average else "state_dict"]


def check_readable(path: Path) -> None:
    """Raise UserError where a checkpoint is missing or damaged; all of the file is read."""
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist: give the path of a .ckpt file (see logs/*/*/checkpoints)")
    damage = damage_of(path)
    if damage is not None:
        raise UserError(f"checkpoint {path} {damage}: use the one saved before it, as --ckpt_path last does")


def _plain_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights without the names of wrappers: a compiled part, or the whole module in a distributed one."""
    distributed = bool(weights) and all(name.startswith("module.") for name in weights)
    plain = {name.removeprefix("module.") if distributed else name: value for name, value in weights.items()}
    for wrapper in WRAPPERS:
        plain = {name.replace(wrapper, ""): value for name, value in plain.items()}
    return plain
