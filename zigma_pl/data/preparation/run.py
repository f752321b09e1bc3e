"""Preparing a data set: writing the missing shards, in this process or in one process per device."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
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
    remove_unless_begun,
)
from zigma_pl.data.cache.manifest import Manifest, ShardLayout, Skipped
from zigma_pl.data.cache.record import PreparedRecord
from zigma_pl.data.preparation.encode import RecordMaker, prepare_items
from zigma_pl.data.samples import Split


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Create the folder and lock it against other `prepare` processes while the block runs.

    The lock is released when the process ends, even if it is killed. If the block raises an error before a shard is
    finished, what it wrote is removed, and so is the folder if it did not exist before.

    Raises:
        UserError: another process holds the lock, or the folder is not writable.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", blocking=False).acquire()
    except Timeout as error:
        raise UserError(
            f"--out {folder}: another process is writing to this folder: wait until it has finished, or choose another "
            "--out"
        ) from error
    except OSError as error:
        raise UserError(f"--out {folder} is not writable ({error.strerror}): choose another folder") from error
    with lock:
        try:
            yield
        except BaseException:
            _remove_if_without_shards(folder, created)
            raise


def _remove_if_without_shards(folder: Path, created: Sequence[Path]) -> None:
    """Remove what an unsuccessful run left in its folder, and those of the folders `created` that are then empty."""
    if not remove_unless_begun(folder):
        return
    if folder in created:
        (folder / ".lock").unlink(missing_ok=True)
    for path in created:
        with suppress(OSError):  # not empty
            path.rmdir()


@dataclass(frozen=True)
class Preparation:
    """Options of a `prepare` run; can be pickled and sent to another process.

    Attributes:
        data_class, options: class and arguments of the data module.
        folder: output folder.
        layout: storage format.
        batch_size: items per call of the encoders.
        num_workers: decoding processes per device.
        skip_bad_files: skip and record files that cannot be read, instead of stopping.
    """

    data_class: type[ImageDataModule]
    options: dict[str, Any]
    folder: Path
    layout: ShardLayout
    batch_size: int = 16
    num_workers: int = 2
    skip_bad_files: bool = False

    def data_module(self) -> ImageDataModule:
        """Build the data module."""
        return self.data_class(**self.options)


def prepare(
    preparation: Preparation,
    splits: list[Split],
    devices: list[torch.device],
    report: Callable[[int, int], None],
    *,
    overwrite: bool = False,
) -> Manifest:
    """Write the missing shards of these splits, and return the manifest.

    Resumes an interrupted run: finished shards are kept, and all other files are removed.

    Args:
        preparation: what to prepare.
        splits: names of the splits.
        devices: one device, or one for each process.
        report: called with the number of items done, including those of earlier runs, and the total number.
        overwrite: remove earlier results first.

    Raises:
        UserError: the options or the data are invalid, or another process is writing to the folder.
        OSError: writing failed; finished shards are kept.
    """
    with sole_writer(preparation.folder):
        data_module = preparation.data_module()
        num_items: dict[Split, int] = {split: len(data_module.pixel_items(split)) for split in splits}
        wanted = Manifest(
            content=data_module.content(),
            layout=preparation.layout,
            class_names=None if data_module.class_names is None else list(data_module.class_names),
            num_items=num_items,
            splits={},
        )
        manifest = begin(preparation.folder, wanted, overwrite=overwrite)
        tasks = missing_tasks(preparation.folder, manifest, splits)
        num_wanted = sum(num_items.values())
        num_done = num_wanted - sum(task.num_items for task in tasks)
        report(num_done, num_wanted)
        try:
            for more in _make(preparation, tasks, devices, data_module):
                num_done += more
                report(num_done, num_wanted)
        finally:
            for split in splits:
                remove_leftovers(preparation.folder, split)
        return finish(preparation.folder, manifest)


def _make(
    preparation: Preparation, tasks: list[Task], devices: list[torch.device], data_module: ImageDataModule
) -> Iterator[int]:
    if len(devices) == 1:
        return make_shards(preparation, tasks, devices[0], data_module)
    return _make_in_processes(preparation, tasks, devices)


def make_shards(
    preparation: Preparation, tasks: list[Task], device: torch.device, data_module: ImageDataModule
) -> Iterator[int]:
    """Write shards one after the other; yields the number of items encoded since the last yield.

    A shard is written to disk while the next one is encoded.
    """
    make_records = RecordMaker(
        data_module.frozen_autoencoder, data_module.text_encoder, np.dtype(preparation.layout.dtype), device
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
                batch_size=preparation.batch_size,
                num_workers=preparation.num_workers,
            )
            for task in tasks_of_split:
                kept: list[PreparedRecord | Skipped] = []
                for entry in islice(entries, task.num_items):
                    if isinstance(entry, Skipped) and not preparation.skip_bad_files:
                        raise UserError(f"{entry.reason}, or skip such files with --on_bad_file skip")
                    kept.append(entry)
                    yield 1
                if writing is not None:
                    writing.result()
                writing = writer.submit(_write, preparation, task, kept)
        if writing is not None:
            writing.result()


def _items(task: Task) -> range:
    return range(task.first_item, task.first_item + task.num_items)


def _write(preparation: Preparation, task: Task, entries: list[PreparedRecord | Skipped]) -> None:
    records = [entry for entry in entries if isinstance(entry, PreparedRecord)]
    skipped = [entry for entry in entries if isinstance(entry, Skipped)]
    folder = preparation.folder / task.split
    try:
        paths = write_shard(folder, task.name, records, np.dtype(preparation.layout.dtype)) if records else []
        record_shard(preparation.folder, task, paths, skipped)
    except BaseException:
        remove_shard(preparation.folder, task)
        raise


# --- several processes ------------------------------------------------------------------------------------------------


def _make_in_processes(preparation: Preparation, tasks: list[Task], devices: list[torch.device]) -> Iterator[int]:
    """Start one process per device for every n-th shard; if one fails, the others are stopped too."""
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    parts = [(device, tasks[i :: len(devices)]) for i, device in enumerate(devices)]
    threads = max(1, (os.cpu_count() or 1) // len(devices))
    processes, pipes = {}, []
    try:
        for device, part in parts:
            if part:
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_make_part, args=(sender, preparation, part, device, threads))
                process.start()
                sender.close()  # only the child still has the sender open, so the pipe closes when the child ends
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
                message = pipe.recv()
            except EOFError:
                pipes.remove(pipe)
                processes[pipe].join()
                if processes[pipe].exitcode:
                    raise RuntimeError(f"a process ended with exit status {processes[pipe].exitcode}") from None
                continue
            if isinstance(message, Exception):
                raise message
            yield message


def _make_part(
    pipe: Connection, preparation: Preparation, tasks: list[Task], device: torch.device, num_threads: int
) -> None:
    torch.set_num_threads(num_threads)
    try:
        for num_items in make_shards(preparation, tasks, device, preparation.data_module()):
            pipe.send(num_items)
    except (BrokenPipeError, KeyboardInterrupt):
        return  # the parent process has ended, or reports the interruption itself
    except (UserError, OSError) as error:
        pipe.send(error)
