"""A worker that fails or dies stops training with what happened."""

import multiprocessing
import os
import signal

import pytest
from distributed.training_run import train

from zigma_pl.data import Digits
from zigma_pl.data.order import TrainingOrder
from zigma_pl.data.samples import PixelSamples, SampleLoader


class Failing(PixelSamples):
    """Fails at a sample of the third batch."""

    how = None

    def item(self, sample_id, index):
        if sample_id == 17:
            type(self).how()
        return super().item(sample_id, index)


def fail():
    raise RuntimeError("there is a hole in picture 17")


def data_that(how):
    class FailingDigits(Digits):
        def live_samples(self, split, *, horizontal_flip):
            kind = type("FailingNow", (Failing,), {"how": staticmethod(how)})
            return kind(self.pixel_items(split), seed=self.seed, horizontal_flip=horizontal_flip)

    return FailingDigits(batch_size=8, num_workers=1)


def test_error_in_a_worker_keeps_its_traceback(tmp_path):
    with pytest.raises(RuntimeError, match="there is a hole in picture 17") as stopped:
        train(tmp_path, data=data_that(fail))
    assert "in DataLoader worker process 0" in str(stopped.value)
    assert "in item" in str(stopped.value)  # the line where it happened


def test_worker_outlives_a_sigterm_for_long_enough(monkeypatch):
    """As where SLURM or a terminal signals the whole group of processes, and the main one has yet to save."""
    monkeypatch.setattr("zigma_pl.data.samples.SECONDS_AFTER_SIGTERM", 2)
    digits = PixelSamples(Digits().pixel_items("train"), seed=0, horizontal_flip=False)
    others = multiprocessing.active_children()
    batches = iter(SampleLoader(digits, TrainingOrder(len(digits), 4, seed=0), num_workers=1))
    next(batches)
    (worker,) = [process for process in multiprocessing.active_children() if process not in others]
    os.kill(worker.pid, signal.SIGTERM)
    for _ in range(20):
        next(batches)
    worker.join(20)
    assert worker.exitcode == -signal.SIGALRM
    batches.close()


@pytest.mark.parametrize(
    ("how", "end"),
    [
        (lambda: os._exit(3), "exited with 3"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed by SIGKILL"),
    ],
)
def test_worker_that_dies_stops_the_run(tmp_path, how, end):
    handler = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(RuntimeError, match=rf"worker 0 of the data loader \(process \d+\) {end}"):
        train(tmp_path, data=data_that(how))
    assert signal.getsignal(signal.SIGCHLD) is handler  # torch's would raise in whatever the main process is doing
