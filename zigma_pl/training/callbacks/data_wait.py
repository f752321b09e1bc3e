"""How long the training step waits for its data, and what to do about it."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from lightning.pytorch.profilers import Profiler

from zigma_pl.data.base import ImageDataModule
from zigma_pl.training.lightning_private import FETCH


class Waits(NamedTuple):
    """Seconds of waiting for the loader, and of the frozen encoders with the copy to the device."""

    loading: float
    encoding: float


class DataClock:
    """Adds up how long the device waits for the loader, and how long the frozen encoders take.

    Marks are set before the loader is asked, when it has answered, and when the batch is encoded. On the CPU they are
    times of the clock. On a GPU they are events in its queue: while the GPU is still busy with the step before, the
    first two pass one right after the other, and nothing was lost; where it has run dry, the time between them is what
    it waited. Encoders run on the GPU, so theirs is the time that they take there. Reading never waits for the GPU:
    steps that it has not come to yet are counted the next time.

    Not seen: a GPU that runs dry while the loader is not being asked, for want of orders from a busy main process.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[Any] = []
        self._steps: deque[list[Any]] = deque()

    def asked(self) -> None:
        """Note that the loader is asked for a batch."""
        self._marks = [self._now()]

    def answered(self) -> None:
        """Note that it has answered."""
        self._marks.append(self._now())

    def encoded(self) -> None:
        """Note that the batch is encoded, and the step can begin."""
        if len(self._marks) == 2:  # not for a batch that was fetched before the clock was set
            self._steps.append([*self._marks, self._now()])
        self._marks = []

    def take(self) -> Waits:
        """Return the seconds of the steps that the device has come to, and forget them."""
        loading = encoding = 0.0
        while self._steps and (not self._on_gpu or self._steps[0][-1].query()):
            asked, answered, encoded = self._steps.popleft()
            loading += self._seconds(asked, answered)
            encoding += self._seconds(answered, encoded)
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
    """Tells when the loader is asked and when it has answered; the trainer's own profiler goes on as it is.

    Args:
        profiler: the trainer's.
        asked: called before the loader is asked for a training batch.
        answered: called when it has answered.
    """

    def __init__(self, profiler: Profiler, asked: Callable[[], None], answered: Callable[[], None]) -> None:
        super().__init__()
        self._profiler = profiler
        self._asked = asked
        self._answered = answered

    def start(self, action_name: str) -> None:
        """Tell, where the action is to ask the loader."""
        self._profiler.start(action_name)
        if action_name == FETCH:
            self._asked()

    def stop(self, action_name: str) -> None:
        """Tell, where the action was to ask the loader."""
        if action_name == FETCH:
            self._answered()
        self._profiler.stop(action_name)


def advice_on_loading(data: ImageDataModule) -> str:
    """Say why a step waits for its batches, and which option is likely to help."""
    if data.num_workers == 0:
        return "batches are loaded by the training process itself: raise data.init_args.num_workers (now 0)"
    workers = f"raise data.init_args.num_workers (now {data.num_workers})"
    if data.cache is None:
        return (
            f"the workers decode too slowly: {workers}, or prepare the data once (python -m zigma_pl prepare) and "
            "train with data.init_args.cache"
        )
    return f"the workers read too slowly: {workers}, or move the prepared folder to a faster disk"


def advice_on_encoding(data: ImageDataModule) -> str | None:
    """Say how to be rid of the frozen encoders' time; None where there is nothing to prepare."""
    if data.cache is not None or (data.autoencoder == "identity" and data.text_encoder is None):
        return None
    return "prepare the data once (python -m zigma_pl prepare) and train with data.init_args.cache"
