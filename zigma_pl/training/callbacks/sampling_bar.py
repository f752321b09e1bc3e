"""The progress bar of a user who waits for a few pictures."""

from typing import Any

import lightning as L
from torch import Tensor, nn
from tqdm import tqdm

from zigma_pl.training.module import GenerativeModule, Samples

FORMAT = "{l_bar}{bar}| {n:.1f}/{total} [{elapsed}<{remaining}]"
DELAY_SECONDS = 1e-3  # more than 0, so that nothing is shown before the first call: an error until then stands alone


class SamplingBar(L.Callback):
    """Counts samples drawn, and on a CPU, where a batch may take minutes, how far the present one is.

    That is told by the time that the network is called at: every sampler goes from t = 1 to t = 0. On a GPU nothing
    should wait for this number, and a replayed graph does not call the network.

    Args:
        num_samples: how many will be drawn.
    """

    def __init__(self, num_samples: int) -> None:
        self._bar = tqdm(total=num_samples, desc="sampling", bar_format=FORMAT, delay=DELAY_SECONDS)
        self._num_drawn = 0
        self._batch_size = 0

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Watch the network, on a CPU."""
        assert isinstance(pl_module, GenerativeModule)
        if pl_module.device.type == "cpu":
            pl_module.backbone.register_forward_pre_hook(self._show)

    def on_predict_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *_: Any) -> None:
        """Note the size of the batch."""
        self._batch_size = len(batch.sample_ids)

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        """Count the batch."""
        assert isinstance(outputs, Samples)
        self._num_drawn += len(outputs.sample_ids)
        self._move_to(self._num_drawn)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End the bar's line."""
        self._bar.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """End the bar's line, so that the error gets one of its own."""
        self._bar.close()

    def _show(self, backbone: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        _, t, *_ = arguments
        self._move_to(self._num_drawn + self._batch_size * (1 - t.mean().item()))

    def _move_to(self, place: float) -> None:
        self._bar.update(place - self._bar.n)
