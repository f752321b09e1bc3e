"""What a checkpoint has to carry beside Lightning's own, so that a resumed run is the one that was not interrupted."""

import random
from typing import Any

import lightning as L
import numpy as np
import torch

from zigma_pl.core.processes import gather_objects
from zigma_pl.training.lightning_private import validation_follows
from zigma_pl.training.trainer_options import schedule_validation

State = dict[str, Any]


def random_state() -> State:
    """Return the state of this process's random numbers, as tensors and plain values: Python, NumPy, torch, its GPU."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002  of whoever draws from it
    assert isinstance(keys, np.ndarray)
    state: State = {
        "python": (version, torch.tensor(words), gauss),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: State) -> None:
    """Go on from what `random_state` gave."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])


def check_random_state(state: State) -> None:
    """Raise ValueError, TypeError or RuntimeError where `set_random_state` would; random numbers stay as they are."""
    own = random_state()
    try:
        set_random_state(state)
    finally:
        set_random_state(own)


def random_states() -> list[State]:
    """Return the states of all processes, by rank; every process has to ask."""
    return gather_objects(random_state())


def validate_if_interrupted_before(trainer: L.Trainer) -> None:
    """Validate now, where the checkpoint was saved in a step that a validation follows, before that validation.

    Lightning itself would leave it out, and with it a point of the curve, a preview, and whatever it draws at random.
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
