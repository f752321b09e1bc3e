"""Writing checkpoints atomically, and reading them with verification and without executing code."""

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
from zigma_pl.training.checkpoints.content import (
    FORMAT_KEY,
    FORMAT_VERSION,
    POWER_AVERAGE,
    RAW_WEIGHTS,
    check_content,
    check_finite,
)

Weights = Literal["average", "raw"]
_MALFORMED = (  # errors that torch and pickle raise for invalid files
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
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.")  # added to parameter names by torch.compile and FSDP


class WholeFileIO(CheckpointIO):
    """Stores a checkpoint in one file, which gets its name only after all of it is on disk.

    Files without a format version, from older releases, can be read; they only lack the random states.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises: UserError if it cannot be written, for example on a full disk; an existing file of this name is kept.
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
                f"checkpoint {path} cannot be written ({reason.strerror}): free disk space, or set checkpoint.dirpath "
                "to another folder, and resume from the previous checkpoint with `fit --ckpt_path last`"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint with `read_checkpoint`, always with `weights_only=True`.

        Raises: UserError also if a raw or averaged weight or an optimiser's moment is not finite.
        """
        checkpoint = read_checkpoint(Path(path), map_location or "cpu")
        moments = {
            f"{name} of parameter {index}": value
            for state in checkpoint.get("optimizer_states", [])
            for index, of_parameter in state["state"].items()
            for name, value in of_parameter.items()
            if isinstance(value, Tensor)
        }
        for tensors in (checkpoint["state_dict"], checkpoint.get(RAW_WEIGHTS, {}), moments):
            check_finite(tensors, f"checkpoint {path}", "use an earlier checkpoint")
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint's file."""
        Path(path).unlink(missing_ok=True)


def _system_error_in(error: BaseException | None) -> OSError | None:
    """Return the underlying OSError: torch's writer raises another error during cleanup."""
    while error is not None and not (isinstance(error, OSError) and error.errno):
        error = error.__cause__ or error.__context__
    return error


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a training checkpoint without executing code.

    Returns: its content, with the parameter names of a run that is neither compiled nor distributed.

    Raises: UserError if it is missing, damaged, not a training checkpoint, contains more than tensors and plain values,
        or was written by a newer zigma_pl.
    """
    check_readable(path)
    try:
        foreign = foreign_object(path)
        checkpoint: Any = None if foreign else torch.load(path, map_location=map_location, weights_only=True)
    except torch.OutOfMemoryError:
        raise
    except _MALFORMED as error:
        raise UserError(
            f"checkpoint {path} is damaged, or not a checkpoint of zigma_pl: use the previous checkpoint"
        ) from error
    if foreign:
        raise UserError(f"checkpoint {path} contains {foreign}, and is not loaded: use one written by zigma_pl")
    check_content(checkpoint, path)
    assert isinstance(checkpoint, dict)
    for name in ("state_dict", RAW_WEIGHTS):
        if name in checkpoint:
            checkpoint[name] = _plain_names(checkpoint[name])
    return checkpoint


def weights_of(checkpoint: Mapping[str, Any], weights: Weights, path: Path | str, otherwise: str) -> dict[str, Tensor]:
    """Return the averaged or the raw weights of a checkpoint; without an average, `state_dict` contains the raw ones.

    Args:
        checkpoint: result of `read_checkpoint`.
        weights: which weights to return.
        path: the file, for the error message.
        otherwise: how to use the raw weights, for the error message.

    Raises: UserError if the checkpoint has no average, or only an average, and the other is requested.
    """
    if weights == "raw" and POWER_AVERAGE in checkpoint:
        raise UserError(f"checkpoint {path} contains only an average: use a checkpoint of its run for the raw weights")
    has_average = RAW_WEIGHTS in checkpoint or POWER_AVERAGE in checkpoint
    if weights == "average" and not has_average:
        raise UserError(
            f"checkpoint {path} has no average of the weights (it was saved before ema.starting_at_step, or without "
            f"averaging): use a later checkpoint, or {otherwise}"
        )
    return checkpoint[RAW_WEIGHTS if weights == "raw" and has_average else "state_dict"]


def check_readable(path: Path) -> None:
    """Raise a UserError if a checkpoint is missing or damaged; reads the whole file."""
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist: give the path of a .ckpt file (see logs/*/*/checkpoints)")
    damage = damage_of(path)
    if damage is not None:
        raise UserError(f"checkpoint {path} {damage}: use the previous checkpoint, as --ckpt_path last does")


def _plain_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under names without the prefixes of torch.compile, FSDP and DDP."""
    distributed = bool(weights) and all(name.startswith("module.") for name in weights)
    plain = {name.removeprefix("module.") if distributed else name: value for name, value in weights.items()}
    for wrapper in WRAPPERS:
        plain = {name.replace(wrapper, ""): value for name, value in plain.items()}
    return plain
