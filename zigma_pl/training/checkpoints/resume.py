"""State for exact resuming beyond Lightning's own: random states, and validations that were interrupted."""

import random
from typing import Any

import lightning as L
import numpy as np
import torch

from zigma_pl.core.processes import gather_objects
from zigma_pl.training.lightning_private import validation_follows
from zigma_pl.training.trainer_options import schedule_validation

RngState = dict[str, Any]


def random_state() -> RngState:
    """Return the global random states of this process (Python, NumPy, torch, GPU) as tensors and plain values."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002  other packages may use it
    assert isinstance(keys, np.ndarray)
    state: RngState = {
        "python": (version, torch.tensor(words), gauss),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: RngState) -> None:
    """Restore the result of `random_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])


def check_random_state(state: RngState) -> None:
    """Raise a ValueError, TypeError or RuntimeError if `set_random_state` would; does not change the random states."""
    own = random_state()
    try:
        set_random_state(state)
    finally:
        set_random_state(own)


def random_states() -> list[RngState]:
    """Return the states of all processes, by rank; must be called on every process."""
    return gather_objects(random_state())


def validate_if_interrupted_before(trainer: L.Trainer) -> None:
    """Run the validation that follows the checkpoint's step, if the checkpoint was saved before that validation.

    Lightning would skip it, and with it a point of the curve, a preview, and its use of global random numbers.
    """
    schedule_validation(trainer)
    loop = trainer.fit_loop.epoch_loop
    batches: Any = loop.batch_progress.total
    saved_before_validation = batches.completed == batches.processed - 1
    if not saved_before_validation or not validation_follows(trainer):
        return
    loop.val_loop.restarting = False
    trainer.validating = True
    loop.val_loop.run()
    trainer.training = True
