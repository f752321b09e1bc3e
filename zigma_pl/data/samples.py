"""The work of the loader's workers: mapping (sample id, index) pairs to samples, and collating them to a `RawBatch`.

Random choices made here (mirroring, which caption) are a function of (seed, sample id), so they do not depend on the
number of workers, the batch size or the number of ranks.
"""

import hashlib
import multiprocessing.connection
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from zigma_pl.core.batch import RawBatch
from zigma_pl.core.errors import UserError
from zigma_pl.core.randomness import sample_generator
from zigma_pl.core.torch_private import (
    forget_workers,
    raise_no_errors_from_signals,
    running_workers,
    shut_down_workers,
    workers_of,
)
from zigma_pl.data.images import PixelDataset, PixelItem
from zigma_pl.data.order import EvaluationOrder, SampleKey, TrainingOrder

Split = Literal["train", "validation", "test"]

SECONDS_AFTER_SIGTERM = 180  # as in configs/slurm/fit.sbatch


class Sample(NamedTuple):
    """One sample of a `RawBatch`; the fields are described there."""

    sample_id: int
    image: Tensor | None = None
    class_id: int | None = None
    caption: str | None = None


class SplitSamples(Dataset[Sample], ABC):
    """A split of a data set as the loader reads it: samples by (sample id, index), and their order.

    A subclass may implement `__getitems__`, which maps a whole batch of pairs to a `RawBatch`.
    """

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, key: SampleKey) -> Sample: ...

    def item_names(self) -> Iterable[str]:
        """Return the name of each item in order, the same on every machine: relative paths if items are files."""
        return map(str, range(len(self)))

    def fingerprint(self) -> str:
        """Return the number of items and a hash of their names in order; equal on machines with the same data set."""
        digest = hashlib.sha256()
        for name in self.item_names():
            digest.update(name.encode(errors="surrogateescape") + b"\0")
        return f"{len(self)} items, SHA-256 of their names {digest.hexdigest()[:16]}"

    def training_order(
        self, batch_size: int, *, seed: int, rank: int, world_size: int, steps_done: Callable[[], int]
    ) -> Sampler[list[SampleKey]]:
        """Return the endless shuffled batches; see `TrainingOrder` for the arguments."""
        return TrainingOrder(len(self), batch_size, seed=seed, rank=rank, world_size=world_size, steps_done=steps_done)

    def evaluation_order(self, batch_size: int, *, rank: int, world_size: int) -> Sampler[list[SampleKey]]:
        """Return batches in which every sample occurs once over all ranks; see `EvaluationOrder`."""
        return EvaluationOrder(len(self), batch_size, rank=rank, world_size=world_size)


class PixelSamples(SplitSamples):
    """Samples of a pixel data set; mirroring and caption are chosen by (seed, sample id)."""

    def __init__(self, items: PixelDataset, *, seed: int, horizontal_flip: bool) -> None:
        self.items = items
        self.seed = seed
        self.horizontal_flip = horizontal_flip

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: SampleKey) -> Sample:
        sample_id, index = key
        item = self.item(sample_id, index)
        flip = self.horizontal_flip and draw(self.seed, "flip", sample_id, 2) == 1
        caption = None
        if item.captions is not None:
            caption = item.captions[draw(self.seed, "caption", sample_id, len(item.captions))]
        return Sample(sample_id, item.pixels.flip(-1) if flip else item.pixels, item.class_id, caption)

    def item_names(self) -> Iterable[str]:
        """Return the names of the images or clips."""
        return self.items.item_names()

    def item(self, sample_id: int, index: int) -> PixelItem:
        """Return item `index`; a subclass may select a part of it by the sample id."""
        return self.items[index]


def draw(seed: int, stream: str, sample_id: int, num_choices: int) -> int:
    """Return a random number in [0, num_choices) that is a function of the arguments."""
    return int(torch.randint(num_choices, (1,), generator=sample_generator(seed, stream, sample_id)))


def read_batch(samples: Dataset[Sample], keys: Sequence[SampleKey]) -> RawBatch:
    """Return the samples of these (sample id, index) pairs."""
    in_batches = getattr(samples, "__getitems__", None)
    return collate([samples[key] for key in keys] if in_batches is None else in_batches(keys))


def collate(samples: list[Sample] | RawBatch) -> RawBatch:
    """Stack samples; a field that the data set does not have is None for the whole batch."""
    if isinstance(samples, RawBatch):
        return samples
    images = [sample.image for sample in samples if sample.image is not None]
    class_ids = [sample.class_id for sample in samples if sample.class_id is not None]
    captions = [sample.caption for sample in samples if sample.caption is not None]
    assert all(len(field) in (0, len(samples)) for field in (images, class_ids, captions))
    return RawBatch(
        sample_ids=torch.tensor([sample.sample_id for sample in samples]),
        images=torch.stack(images) if images else None,
        class_ids=torch.tensor(class_ids) if class_ids else None,
        captions=captions or None,
    )


def held_out_conditions(samples: SplitSamples, sample_ids: Sequence[int]) -> RawBatch:
    """Return items without latents; sample i has the condition of item i, modulo the number of items."""
    keys = [(sample_id, sample_id % len(samples)) for sample_id in sample_ids]
    return read_batch(samples, keys)._replace(moments=None)


def _death_of_worker(batches: Any) -> RuntimeError | None:
    """Return a helpful error if a worker has died, None otherwise; DataLoader raises various unspecific errors then."""
    workers = workers_of(batches)
    ended = multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=1)  # or about to end
    for index, worker in enumerate(workers):
        if worker.sentinel in ended:
            worker.join()
        if status := worker.exitcode:
            end = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with {status}"
            return RuntimeError(
                f"worker {index} of the data loader (process {worker.pid}) {end}: if the machine ran out of memory, "
                "lower data.num_workers or data.batch_size"
            )
    return None


def _outlive_sigterm(worker: int) -> None:
    """Make a worker exit only `SECONDS_AFTER_SIGTERM` after SIGTERM, which is often sent to a whole process group.

    That gives the main process time to finish its step, save a checkpoint and shut its workers down.
    """
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(SECONDS_AFTER_SIGTERM))


class SampleLoader:
    """Loads the batches of an order in worker processes.

    Wraps a DataLoader instead of subclassing it, for two reasons: Lightning rebuilds DataLoaders with its own samplers
    in `predict` and on several ranks, and a `UserError` raised in a worker must stay one line. It has a length if the
    order has one.

    Args:
        dataset: maps (sample id, index) pairs to samples.
        order: yields batches of such pairs.
        num_workers: worker processes, 0 for none.
    """

    def __init__(self, dataset: Dataset[Sample], order: Sampler[list[SampleKey]], num_workers: int) -> None:
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=order,
            num_workers=num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            worker_init_fn=_outlive_sigterm,
            # With its own generator: otherwise each new iterator advances the global random state.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[RawBatch]:
        raise_no_errors_from_signals()
        batches = iter(self._loader)
        try:
            yield from batches
        except UserError as error:  # a worker's error arrives with its traceback as the message
            message = str(error).rsplit("UserError: ", 1)[-1].strip()
        except (OSError, EOFError, RuntimeError) as error:
            raise _death_of_worker(batches) or error from error
        else:
            return
        if shut_down_workers(batches):
            forget_workers(self._loader)
        raise UserError(message)

    @property
    def _iterator(self) -> Any:
        """The running workers; Lightning reads this attribute to shut them down at the end."""
        return running_workers(self._loader)

    @_iterator.setter
    def _iterator(self, iterator: None) -> None:
        assert iterator is None
        forget_workers(self._loader)

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict, as the order follows from the step. Lightning takes its presence as resumability."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing, as the state is empty."""
