"""Preparing a data set: which shards are missing, and making them, in this process or in several."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, islice
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from zigma_pl.core.errors import UserError
from zigma_pl.data.base import ImageDataModule
from zigma_pl.data.cache.arrays import write_shard
from zigma_pl.data.cache.folder import (
    Task,
    begin,
    finish,
    missing_tasks,
    record_shard,
    remove_leftovers,
    remove_shard,
)
from zigma_pl.data.cache.manifest import Layout, Manifest, Skipped
from zigma_pl.data.cache.record import PreparedRecord
from zigma_pl.data.preparation.encode import RecordMaker, prepare_items
from zigma_pl.data.samples import Split


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Make the folder, and keep every other process from preparing into it for as long as the block runs.

    The lock ends with the process, however that ends.

    Raises:
        UserError: another process prepares into the folder, or this one may not.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", blocking=False).acquire()
    except Timeout as error:
        raise UserError(
            f"--out {folder}: another process is preparing into this folder; wait until it has ended, or choose "
            "another --out"
        ) from error
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written to ({error.strerror}); choose another folder") from error
    with lock:
        yield


@dataclass(frozen=True)
class Job:
    """What to prepare, where to and how; plain enough to be sent to another process.

    Attributes:
        data_class, options: the data module.
        folder: where to.
        layout: how the result is kept.
        batch_size: items that go through the encoders at once.
        num_workers: processes that decode, of each device.
        skip_bad_files: leave out what cannot be read, and note it, instead of stopping.
    """

    data_class: type[ImageDataModule]
    options: dict[str, Any]
    folder: Path
    layout: Layout
    batch_size: int = 16
    num_workers: int = 2
    skip_bad_files: bool = False

    def data_module(self) -> ImageDataModule:
        """Return a data module of its own for this process."""
        return self.data_class(**self.options)


def prepare(
    job: Job,
    splits: list[Split],
    devices: list[torch.device],
    report: Callable[[int, int], None],
    *,
    overwrite: bool = False,
) -> Manifest:
    """Make whatever is missing of these splits, and return the manifest.

    A run that was cut off, however that happened, is gone on with: only whole shards count.

    Args:
        job: what to prepare.
        splits: which splits.
        devices: one, or one for each process.
        report: called with the number of items done, those of earlier runs among them, and the number of all.
        overwrite: begin anew.

    Raises:
        UserError: options or data at fault, or another process prepares into the folder.
        OSError: the folder cannot be written to; whole shards stay, nothing else does.
    """
    with sole_writer(job.folder):
        data_module = job.data_module()
        num_items: dict[Split, int] = {split: len(data_module.pixel_items(split)) for split in splits}
        wanted = Manifest(content=data_module.content(), layout=job.layout, num_items=num_items, splits={})
        manifest = begin(job.folder, wanted, overwrite=overwrite)
        tasks = missing_tasks(job.folder, manifest, splits)
        num_wanted = sum(num_items.values())
        num_done = num_wanted - sum(task.num_items for task in tasks)
        report(num_done, num_wanted)
        try:
            for more in _make(job, tasks, devices, data_module):
                num_done += more
                report(num_done, num_wanted)
        finally:
            for split in splits:
                remove_leftovers(job.folder, split)
        return finish(job.folder, manifest)


def _make(job: Job, tasks: list[Task], devices: list[torch.device], data_module: ImageDataModule) -> Iterator[int]:
    if len(devices) == 1:
        return make_shards(job, tasks, devices[0], data_module)
    return _make_in_processes(job, tasks, devices)


def make_shards(job: Job, tasks: list[Task], device: torch.device, data_module: ImageDataModule) -> Iterator[int]:
    """Make shards one after the other; yields the number of items that went through the encoders since the last one.

    A shard is written while the next one is encoded.
    """
    make_records = RecordMaker(
        data_module.frozen_autoencoder, data_module.text_encoder, np.dtype(job.layout.dtype), device
    )
    with ThreadPoolExecutor(1) as writer:
        writing: Future[None] | None = None
        for split, group in groupby(tasks, lambda task: task.split):
            tasks_of_split = list(group)
            indices = [index for task in tasks_of_split for index in _items(task)]
            entries = prepare_items(
                data_module.pixel_items(split),
                indices,
                make_records,
                batch_size=job.batch_size,
                num_workers=job.num_workers,
            )
            for task in tasks_of_split:
                kept: list[PreparedRecord | Skipped] = []
                for entry in islice(entries, task.num_items):
                    if isinstance(entry, Skipped) and not job.skip_bad_files:
                        raise UserError(f"{entry.reason}; or leave such files out: --on_bad_file skip")
                    kept.append(entry)
                    yield 1
                if writing is not None:
                    writing.result()
                writing = writer.submit(_write, job, task, kept)
        if writing is not None:
            writing.result()


def _items(task: Task) -> range:
    return range(task.first_item, task.first_item + task.num_items)


def _write(job: Job, task: Task, entries: list[PreparedRecord | Skipped]) -> None:
    records = [entry for entry in entries if isinstance(entry, PreparedRecord)]
    skipped = [entry for entry in entries if isinstance(entry, Skipped)]
    folder = job.folder / task.split
    try:
        paths = write_shard(folder, task.name, records, np.dtype(job.layout.dtype)) if records else []
        record_shard(job.folder, task, paths, skipped)
    except BaseException:
        remove_shard(job.folder, task)
        raise


# --- several processes ------------------------------------------------------------------------------------------------


def _make_in_processes(job: Job, tasks: list[Task], devices: list[torch.device]) -> Iterator[int]:
    """Give every device a process and every n-th shard; when one fails, the others end too."""
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    shares = [(device, tasks[number :: len(devices)]) for number, device in enumerate(devices)]
    threads = max(1, (os.cpu_count() or 1) // len(devices))
    processes, pipes = {}, []
    try:
        for device, share in shares:
            if share:
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_make_share, args=(sender, job, share, device, threads))
                process.start()
                sender.close()  # the process's own copy is now the only one: when that ends, so does the pipe
                processes[receiver] = process
                pipes.append(receiver)
        yield from _follow(pipes, processes)
    finally:
        for process in processes.values():
            process.terminate()
            process.join()


def _follow(pipes: list[Connection], processes: dict[Connection, Any]) -> Iterator[int]:
    while pipes:
        for pipe in wait(pipes):
            assert isinstance(pipe, Connection)
            try:
                news = pipe.recv()
            except EOFError:
                pipes.remove(pipe)
                processes[pipe].join()
                if processes[pipe].exitcode:
                    raise RuntimeError(f"a process ended with exit status {processes[pipe].exitcode}") from None
                continue
            if isinstance(news, Exception):
                raise news
            yield news


def _make_share(pipe: Connection, job: Job, tasks: list[Task], device: torch.device, num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    try:
        for num_items in make_shards(job, tasks, device, job.data_module()):
            pipe.send(num_items)
    except (BrokenPipeError, KeyboardInterrupt):
        return  # the process that started this one is gone, or says itself what has happened
    except (UserError, OSError) as error:
        pipe.send(error)
