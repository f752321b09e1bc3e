"""How far a run has come, in a small file that another process can look at while it goes on."""

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
    """What the file holds.

    phase: what is being done.
    done, total: steps, or images where the phase is sampling; total is None where it is not known.
    images_per_second: over all processes, None until it is known.
    seconds_left: of the phase, None until it is known.
    """

    remedy: ClassVar[str] = "remove it"

    phase: Phase
    done: int
    total: int | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None


class ProgressFile(L.Callback):
    """Write how far the run has come as JSON, whole or not at all.

    Args:
        path: the file.
        seconds_between: least time between two writes; the first and the last of a phase are always written.
    """

    def __init__(self, path: str, seconds_between: float = 1.0) -> None:
        check_numbers("ProgressFile", least=0, seconds_between=seconds_between)
        self.path = Path(path)
        self.seconds_between = seconds_between
        self._phase: Phase | None = None
        self._began = (0.0, 0)  # time and count when this run began the phase
        self._written = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say where training starts, which is not at 0 in a resumed run."""
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
        """Count a batch of the loss on held-out images."""
        (num_batches,) = trainer.num_test_batches
        self._report(trainer, "validation loss", batch_idx + 1, int(num_batches))

    def on_images_sampled(self, trainer: L.Trainer, done: int, total: int) -> None:
        """Count the images that have been sampled; what samples them calls this."""
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
    """Read the file; None where there is none.

    Raises:
        UserError: it holds something else.
    """
    try:
        content = read_regular(path)
    except FileNotFoundError:  # also one that is removed meanwhile
        return None
    return parse_record(Progress, content, path)
