"""Measure how long training steps wait for data, and suggest how to speed loading up."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from lightning.pytorch.profilers import Profiler

from zigma_pl.data.base import ImageDataModule
from zigma_pl.training.lightning_private import FETCH


class Waits(NamedTuple):
    """Seconds spent waiting for the loader, and in the frozen encoders including the copy to the device."""

    loading: float
    encoding: float


class DataClock:
    """Adds up how long the device waits for the loader, and how long the frozen encoders take.

    Timestamps are taken before a batch is requested, after it has been loaded, and after it has been encoded. On the
    CPU they are wall-clock times. On a GPU they are CUDA events: while the GPU is still busy with the previous step,
    the first two events complete together, so no waiting is counted; if the GPU is idle, the time between them is the
    waiting time. The encoders run on the GPU, so their time there is measured. Reading the times never synchronises:
    steps that the GPU has not finished are counted the next time.

    Idle time of the GPU outside of loading, such as when the main process launches kernels too slowly, is not measured.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[Any] = []
        self._steps: deque[list[Any]] = deque()

    def batch_requested(self) -> None:
        """Record that a batch is requested from the loader."""
        self._marks = [self._now()]

    def batch_loaded(self) -> None:
        """Record that the loader has returned the batch."""
        self._marks.append(self._now())

    def batch_encoded(self) -> None:
        """Record that the batch is encoded and the step starts."""
        if len(self._marks) == 2:  # skips a batch that was loaded before this clock was created
            self._steps.append([*self._marks, self._now()])
        self._marks = []

    def take(self) -> Waits:
        """Return and remove the seconds of all steps that the device has reached."""
        loading = encoding = 0.0
        while self._steps and (not self._on_gpu or self._steps[0][-1].query()):
            requested, loaded, encoded = self._steps.popleft()
            loading += self._seconds(requested, loaded)
            encoding += self._seconds(loaded, encoded)
        return Waits(loading, encoding)

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1000 if self._on_gpu else end - start


class FetchWatch(Profiler):
    """A profiler that calls functions before and after a training batch is loaded, and forwards to another profiler.

    Args:
        profiler: the trainer's profiler.
        on_requested: called before a training batch is requested from the loader.
        on_loaded: called after the loader has returned it.
    """

    def __init__(self, profiler: Profiler, on_requested: Callable[[], None], on_loaded: Callable[[], None]) -> None:
        super().__init__()
        self._profiler = profiler
        self._on_requested = on_requested
        self._on_loaded = on_loaded

    def start(self, action_name: str) -> None:
        """Forward; call `on_requested` if the action is loading a batch."""
        self._profiler.start(action_name)
        if action_name == FETCH:
            self._on_requested()

    def stop(self, action_name: str) -> None:
        """Forward; call `on_loaded` if the action was loading a batch."""
        if action_name == FETCH:
            self._on_loaded()
        self._profiler.stop(action_name)


def advice_on_loading(data: ImageDataModule) -> str:
    """Return why training waits for batches, and the option that is likely to help."""
    if data.num_workers == 0:
        return "batches are loaded in the training process: raise data.init_args.num_workers (now 0)"
    workers = f"raise data.init_args.num_workers (now {data.num_workers})"
    if data.cache is None:
        return (
            f"decoding is too slow: {workers}, or prepare the data once (python -m zigma_pl prepare) and train with "
            "data.init_args.cache"
        )
    return f"reading is too slow: {workers}, or move the prepared folder to a faster disk"


def advice_on_encoding(data: ImageDataModule) -> str | None:
    """Return how to avoid running the frozen encoders in training; None if there is nothing to prepare."""
    if data.cache is not None or (data.autoencoder == "identity" and data.text_encoder is None):
        return None
    return "prepare the data once (python -m zigma_pl prepare) and train with data.init_args.cache"
