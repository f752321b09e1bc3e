"""Log training speed, GPU utilisation, memory, and time spent waiting for data."""

import logging
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.profilers import Profiler

from zigma_pl.core.batch import Batch
from zigma_pl.core.ranges import check_numbers
from zigma_pl.data.base import ImageDataModule
from zigma_pl.training.callbacks.data_wait import DataClock, FetchWatch, advice_on_encoding, advice_on_loading
from zigma_pl.training.callbacks.model_cost import peak_flops_per_second, tokens_per_image, training_flops_per_image
from zigma_pl.training.module import GenerativeModule

log = logging.getLogger(__name__)

IMAGES_PER_SECOND = "train/images_per_second"
FRACTION_TO_WARN_OF = 0.1  # of the time
CHANGE_TO_WARN_AGAIN = 0.2


class Throughput(L.Callback):
    """Log training speed and waiting times each time the trainer logs.

    The values cover the steps since the last report (the memory: all steps), without validation, previews and saving of
    checkpoints:

    - train/images_per_second and train/tokens_per_second, over all processes; a token is a patch of the latents.
    - train/model_flops_utilization: operations that the model needs (three forward passes per image, without
      recomputed activations) relative to the dense bfloat16 peak of the GPUs.
    - train/peak_memory_gib: peak memory of tensors since the start of the run, on a GPU.
    - train/data_wait: fraction of the time that the device waits for the loader; see `DataClock`.
    - train/encoding: fraction of the time spent in the frozen encoders and the copy to the device.

    The last three are maxima over all processes. If one of the two fractions exceeds 10 %, a warning suggests what is
    likely to help; it is repeated when the fraction has changed by 0.2. The first report gives no warning, as it
    includes the start of loaders and kernels.

    Args:
        peak_tflops: peak performance of one device, in 10^12 operations per second, for the utilisation; None uses the
            data sheet of known GPUs, and logs no utilisation for other GPUs and on the CPU.

    Attributes:
        peak_memory_gib: the last train/peak_memory_gib, 0 without a GPU; stored in checkpoints.
    """

    def __init__(self, peak_tflops: float | None = None) -> None:
        check_numbers("throughput", above=0, peak_tflops=peak_tflops)
        self.peak_tflops = peak_tflops
        self.peak_memory_gib = 0.0
        self._clock = DataClock(torch.device("cpu"))
        self._profiler: Profiler | None = None  # the trainer's original profiler
        self._counted_until: float | None = None  # None while time is not counted
        self._seconds, self._num_images, self._peak_bytes = 0.0, 0, 0
        self._last_step = 0
        self._num_reports = 0
        self._warned_of: dict[str, float] = {}
        self._tokens_per_image: int | None = None
        self._utilization_per_image: float | None = None  # utilisation at one image per second

    # --- hooks --------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count the operations per image, and start measuring the loader."""
        assert isinstance(pl_module, GenerativeModule)
        self._clock = DataClock(trainer.strategy.root_device)
        self._profiler = trainer.profiler  # type: ignore[attr-defined]
        trainer.profiler = FetchWatch(self._profiler, self._on_requested, self._clock.batch_loaded)  # type: ignore[attr-defined]
        self._tokens_per_image = tokens_per_image(pl_module.backbone)
        self._utilization_per_image = self._find_utilization_per_image(trainer, pl_module)
        self._last_step, self._num_reports = trainer.global_step, 0
        self._counted_until = None
        self._begin(trainer)

    def _on_requested(self) -> None:
        """Resume counting time after a pause."""
        if self._counted_until is None:
            self._counted_until = time.perf_counter()
        self._clock.batch_requested()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Record that the batch is loaded and encoded."""
        self._clock.batch_encoded()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the batch, and log in logging steps."""
        if self._counted_until is not None:
            now = time.perf_counter()
            self._seconds += now - self._counted_until
            self._num_images += len(batch.sample_ids) * trainer.world_size
            self._counted_until = now
        stepped = trainer.global_step != self._last_step  # False if gradients were only accumulated
        self._last_step = trainer.global_step
        if stepped and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._report(trainer, pl_module)
            self._begin(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop counting time and memory until the next training batch."""
        self._counted_until = None
        self._peak_bytes = self._peak_bytes_until_now(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reset the memory peak."""
        reset_peak_memory(trainer.strategy.root_device)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Stop counting time until the next training batch."""
        self._counted_until = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop measuring the loader."""
        if self._profiler is not None:
            trainer.profiler = self._profiler  # type: ignore[attr-defined]

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stop measuring the loader."""
        self.on_train_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the largest memory peak."""
        return {"peak_memory_gib": self.peak_memory_gib}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the largest memory peak."""
        self.peak_memory_gib = state_dict["peak_memory_gib"]

    # --- measurements -------------------------------------------------------------------------------------------------

    def _begin(self, trainer: L.Trainer) -> None:
        self._seconds, self._num_images, self._peak_bytes = 0.0, 0, 0
        reset_peak_memory(trainer.strategy.root_device)

    def _report(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._seconds == 0:
            return
        rate = self._num_images / self._seconds
        # A CPU tensor: Lightning would move a plain number to the device and read it back for the bar in each step.
        module.log(IMAGES_PER_SECOND, torch.tensor(rate), prog_bar=True)
        if self._tokens_per_image is not None:
            module.log("train/tokens_per_second", rate * self._tokens_per_image)
        if self._utilization_per_image is not None:
            module.log("train/model_flops_utilization", rate * self._utilization_per_image)
        waits = self._clock.take()
        peak_gib = self._peak_bytes_until_now(trainer) / 2**30
        fractions = (waits.loading / self._seconds, waits.encoding / self._seconds)
        loading, encoding, peak_gib = largest_over_processes(trainer, *fractions, peak_gib)
        module.log_dict({"train/data_wait": loading, "train/encoding": encoding})
        if peak_gib > 0:
            # The largest so far: the memory of CUDA graphs is only counted while they are recorded.
            self.peak_memory_gib = max(self.peak_memory_gib, peak_gib)
            module.log("train/peak_memory_gib", self.peak_memory_gib)
        self._num_reports += 1
        if self._num_reports > 1 and trainer.is_global_zero:
            self._warn(trainer, loading, encoding)

    def _warn(self, trainer: L.Trainer, loading: float, encoding: float) -> None:
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, ImageDataModule):
            return
        reasons = {
            "training waits for the loader": (loading, advice_on_loading(data)),
            "the frozen encoders take": (encoding, advice_on_encoding(data)),
        }
        for what, (fraction, advice) in reasons.items():
            has_changed = abs(fraction - self._warned_of.get(what, -1.0)) >= CHANGE_TO_WARN_AGAIN
            if advice is not None and fraction > FRACTION_TO_WARN_OF and has_changed:
                self._warned_of[what] = fraction
                log.warning(f"{what} {fraction:.0%} of the time: {advice}")

    def _find_utilization_per_image(self, trainer: L.Trainer, module: GenerativeModule) -> float | None:
        peak = peak_flops_per_second(trainer.strategy.root_device)
        if self.peak_tflops is not None:
            peak = self.peak_tflops * 1e12
        if peak is None:
            return None
        text_encoder = getattr(getattr(trainer, "datamodule", None), "text_encoder", None)
        flops = training_flops_per_image(module.backbone, None if text_encoder is None else text_encoder.max_tokens)
        return None if flops is None else flops / (peak * trainer.world_size)

    def _peak_bytes_until_now(self, trainer: L.Trainer) -> int:
        device = trainer.strategy.root_device
        return max(self._peak_bytes, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0)


def reset_peak_memory(device: torch.device) -> None:
    """Reset a GPU's peak of allocated memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def largest_over_processes(trainer: L.Trainer, *values: float) -> list[float]:
    """Return the maximum of each value over all processes, which must all call this; synchronises with the device."""
    if trainer.world_size == 1:
        return list(values)
    ours = torch.tensor(values, device=trainer.strategy.root_device)
    return trainer.strategy.reduce(ours, reduce_op="max").tolist()
