"""A small file with the progress of a run, which other processes can read while it is running."""

import time
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning as L

from zigma_pl.core.files import read_regular, whole_file
from zigma_pl.core.ranges import check_numbers
from zigma_pl.core.records import Record, parse_record
from zigma_pl.training.callbacks.throughput import IMAGES_PER_SECOND

Phase = Literal["training", "validation loss", "sampling"]


class Progress(Record):
    """Content of the progress file.

    phase: current phase.
    done, total: steps, or images in the sampling phase; total is None if unknown.
    images_per_second: speed over all processes, None until known.
    seconds_left: estimated time left in the phase, None until known.
    """

    remedy: ClassVar[str] = "remove it"

    phase: Phase
    done: int
    total: int | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None


class ProgressFile(L.Callback):
    """Write the progress of a run to a JSON file, atomically.

    Args:
        path: the file.
        seconds_between: minimum time between two writes; the first and the last of a phase are always written.
    """

    def __init__(self, path: str, seconds_between: float = 1.0) -> None:
        check_numbers("ProgressFile", least=0, seconds_between=seconds_between)
        self.path = Path(path)
        self.seconds_between = seconds_between
        self._phase: Phase | None = None
        self._began = (0.0, 0)  # time and count at the start of the phase in this run
        self._written = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the first step, which is not 0 in a resumed run."""
        self._report(trainer, "training", trainer.global_step, trainer.max_steps)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a step."""
        rate = trainer.callback_metrics.get(IMAGES_PER_SECOND)
        speed = None if rate is None else float(rate)
        self._report(trainer, "training", trainer.global_step, trainer.max_steps, speed)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch of the held-out loss."""
        (num_batches,) = trainer.num_test_batches
        self._report(trainer, "validation loss", batch_idx + 1, int(num_batches))

    def on_images_sampled(self, trainer: L.Trainer, done: int, total: int) -> None:
        """Count sampled images; called by the scorer."""
        self._report(trainer, "sampling", done, total)

    def _report(
        self, trainer: L.Trainer, phase: Phase, done: int, total: int | None, images_per_second: float | None = None
    ) -> None:
        now = time.monotonic()
        due = phase != self._phase or done == total or now - self._written >= self.seconds_between
        if not trainer.is_global_zero or not due:
            return
        if phase != self._phase:
            self._phase, self._began = phase, (now, done)
        seconds, count = now - self._began[0], done - self._began[1]
        if phase == "sampling" and count:
            images_per_second = count / seconds
        left = None if total is None or not count else seconds / count * (total - done)
        progress = Progress(phase=phase, done=done, total=total, images_per_second=images_per_second, seconds_left=left)
        with whole_file(self.path) as temporary:
            temporary.write_text(progress.model_dump_json() + "\n")
        self._written = now


def read_progress(path: Path) -> Progress | None:
    """Read a progress file; None if it does not exist.

    Raises:
        UserError: the file is not a valid progress file.
    """
    try:
        content = read_regular(path)
    except FileNotFoundError:  # also if it is removed at this moment
        return None
    return parse_record(Progress, content, path)
