"""Choose, after the first training step, whether the layers store more activations instead of recomputing them."""

import logging
from typing import Any

import lightning as L
import torch

from zigma_pl.core.batch import Batch
from zigma_pl.core.processes import gather_objects
from zigma_pl.models.mixers import Mixer
from zigma_pl.training.callbacks.model_cost import tokens_per_image
from zigma_pl.training.module import GenerativeModule

log = logging.getLogger(__name__)

FRACTION_KEPT_FREE = 0.1  # of the memory of the device, for recordings of CUDA graphs, validation and fragmentation


class ActivationMemory(L.Callback):
    """Let layers with activation_memory "auto" store more activations if the memory of every process's GPU suffices.

    The first step of a run stores few activations, and shows how much memory is free. The choice is stored in
    checkpoints, so that a resumed run computes the same numbers. It is not made for networks with gradient
    checkpointing, which would discard the activations, or compiled networks, which would be compiled again.

    Attributes:
        stores_more: the choice; None before it is made.
    """

    def __init__(self) -> None:
        self.stores_more: bool | None = None
        self._is_first_step = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Apply the choice of a resumed run."""
        assert isinstance(pl_module, GenerativeModule)
        self._is_first_step = True
        if self.stores_more:
            _store_more(pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Make the choice after the first step."""
        assert isinstance(pl_module, GenerativeModule)
        if not self._is_first_step or self.stores_more is not None:
            return
        self._is_first_step = False
        available, needed = available_bytes(pl_module.device), extra_bytes(pl_module, len(batch.sample_ids))
        if available is None or needed == 0:
            return
        self.stores_more = min(gather_objects(needed <= available))
        log.info(
            "activation_memory: %s, as storing more activations takes %.1f GB and %.1f GB are available",
            "fast" if self.stores_more else "lean",
            needed / 1e9,
            available / 1e9,
        )
        if self.stores_more:
            _store_more(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the choice."""
        return {"stores_more": self.stores_more}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the choice."""
        self.stores_more = state_dict["stores_more"]


def extra_bytes(module: GenerativeModule, batch_size: int) -> int:
    """Return how many more bytes the layers of a network would store for a batch of this size; 0 without a choice."""
    if module.compile_backbone or getattr(module.backbone, "gradient_checkpointing", False):
        return 0
    num_tokens = batch_size * (tokens_per_image(module.backbone) or 0)
    itemsize = 2 if "16" in str(module.trainer.precision) else 4
    return sum(mixer.extra_activation_bytes(num_tokens, itemsize) for mixer in _mixers(module))


def available_bytes(device: torch.device) -> float | None:
    """Return the bytes of a GPU that neither training so far nor other programs need, less a reserve; None on a CPU."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.max_memory_allocated(device)
    return free + unused - FRACTION_KEPT_FREE * total


def _store_more(module: GenerativeModule) -> None:
    for mixer in _mixers(module):
        mixer.store_more_activations()
    module.forget_recordings()


def _mixers(module: GenerativeModule) -> list[Mixer]:
    return [layer for layer in module.backbone.modules() if isinstance(layer, Mixer)]
