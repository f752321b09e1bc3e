"""The progress bar of interactive sampling."""

from typing import Any

import lightning as L
from torch import Tensor, nn
from tqdm import tqdm

from zigma_pl.training.module import GenerativeModule, Samples

FORMAT = "{l_bar}{bar}| {n:.1f}/{total} [{elapsed}<{remaining}]"
DELAY_SECONDS = 1e-3  # positive, so that the bar is not shown if an error occurs before the first call


class SamplingBar(L.Callback):
    """Counts generated samples; on a CPU, where a batch may take minutes, also the progress within a batch.

    The progress within a batch follows from the time t of the network calls, which decreases in every sampler. It is
    not shown on a GPU, where reading t would synchronise and replayed CUDA graphs do not call the network.

    Args:
        num_samples: total number of samples.
    """

    def __init__(self, num_samples: int) -> None:
        self._bar = tqdm(total=num_samples, desc="sampling", bar_format=FORMAT, delay=DELAY_SECONDS)
        self._num_done = 0
        self._batch_size = 0
        self._t_start, self._t_end = 1.0, 0.0

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """On a CPU, observe the network calls."""
        assert isinstance(pl_module, GenerativeModule)
        self._t_start, self._t_end = pl_module.predict_times
        if pl_module.device.type == "cpu":
            pl_module.backbone.register_forward_pre_hook(self._show)

    def on_predict_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *_: Any) -> None:
        """Store the size of the batch."""
        self._batch_size = len(batch.sample_ids)

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        """Count the batch."""
        assert isinstance(outputs, Samples)
        self._num_done += len(outputs.sample_ids)
        self._move_to(self._num_done)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar."""
        self._bar.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the error starts on a new line."""
        self._bar.close()

    def _show(self, backbone: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        _, t, *_ = arguments
        progress = (self._t_start - t.mean().item()) / (self._t_start - self._t_end)
        self._move_to(self._num_done + self._batch_size * progress)

    def _move_to(self, position: float) -> None:
        self._bar.update(position - self._bar.n)
