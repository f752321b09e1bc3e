"""Run experiments on this machine, each in its own processes; a failure does not affect the others."""

import contextlib
import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from queue import SimpleQueue

from filelock import FileLock, Timeout

from zigma_pl.core.errors import PREEMPTED_STATUS, UserError
from zigma_pl.suite.runs.plan import Run

_LINES_SHOWN = 6  # lines of output of a failed run
_SECONDS_TO_STOP = 30.0
_SECONDS_TO_SAVE = 110.0  # less than the 120 of configs/slurm/experiment.sbatch
_POLL_SECONDS = 0.5


class RunState(Enum):
    """State of a run."""

    WAITING = "waiting"
    TRAINING = "training"
    SCORING = "scoring"
    DONE = "done"
    CHANGED = "changed"  # its record was made with other options, and is kept
    ELSEWHERE = "elsewhere"  # another process runs it
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def is_active(self) -> bool:
        """Whether a process is running it."""
        return self in (RunState.TRAINING, RunState.SCORING)


@dataclass
class TrackedRun:
    """A run and its state.

    run: the run.
    state: its state.
    note: the error of a failed run, or another message for the user.
    """

    run: Run
    state: RunState = RunState.WAITING
    note: str = ""


def track(run: Run, again: bool) -> TrackedRun:
    """Return a run with its state: finished, if its record was made with the same options.

    Args:
        run: the run.
        again: run it again if its record was made with other options.
    """
    status = run.record_status()
    if status.is_done:
        return TrackedRun(run, RunState.DONE)
    if status.changed and not again:
        return TrackedRun(run, RunState.CHANGED, f"{status.note}: kept, --again runs the experiment again")
    return TrackedRun(run, note=status.note)


class LocalRunner:
    """Runs experiments, `num_workers` at a time, until all have finished or failed.

    Args:
        tracked_runs: the runs; their states are updated.
        num_workers: number of runs at a time.
        through: prefix of each command, such as ("srun",).
        environments: additional environment variables of each worker.
    """

    def __init__(
        self,
        tracked_runs: Sequence[TrackedRun],
        num_workers: int = 1,
        through: Sequence[str] = (),
        environments: Sequence[dict[str, str]] = (),
    ) -> None:
        self.tracked_runs = tracked_runs
        self.through = list(through)
        self._pool = ThreadPoolExecutor(num_workers)
        self._environments: SimpleQueue[dict[str, str]] = SimpleQueue()
        for index in range(num_workers):
            self._environments.put(environments[index] if environments else {})
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._stopped = threading.Event()
        self.stop_signal = signal.SIGINT

    def run(self) -> Generator[None]:
        """Run all waiting runs; yields periodically, so that the caller can show the progress.

        If the caller is interrupted or closes the generator, active runs are stopped, and resume from their last
        checkpoint next time. If `stop_signal` is SIGUSR1, training saves a checkpoint before it ends.
        """
        futures = [
            self._pool.submit(self._work, tracked) for tracked in self.tracked_runs if tracked.state is RunState.WAITING
        ]
        try:
            while not all(future.done() for future in futures):
                wait(futures, timeout=_POLL_SECONDS)
                yield
        finally:
            self._stop(futures)
        for future in futures:
            future.result()  # raises an error of this program, which is no failure of a run

    def _work(self, tracked: TrackedRun) -> None:
        environment = self._environments.get()
        try:
            with run_lock(tracked.run.log_folder) as lock:
                if lock is None:
                    tracked.state, tracked.note = RunState.ELSEWHERE, "another process runs it"
                elif tracked.run.record_status().is_done:  # by another process, since the plan was made
                    tracked.state = RunState.DONE
                else:
                    self._train_and_score(tracked, environment, lock)
        finally:
            self._environments.put(environment)

    def _train_and_score(self, tracked: TrackedRun, environment: dict[str, str], lock: int) -> None:
        if not tracked.run.is_trained():
            tracked.state = RunState.TRAINING
            if not self._call(tracked, tracked.run.fit_command(), environment, lock):
                return
        tracked.state = RunState.SCORING
        if not self._call(tracked, tracked.run.test_command(), environment, lock):
            return
        try:
            tracked.run.note_scored()
        except UserError as error:
            tracked.state, tracked.note = RunState.FAILED, str(error)
        else:
            tracked.state, tracked.note = RunState.DONE, ""

    def _call(self, tracked: TrackedRun, command: list[str], environment: dict[str, str], lock: int) -> bool:
        """Run one command to its end; returns whether it succeeded."""
        tracked.run.progress.unlink(missing_ok=True)  # of the previous command
        with tracked.run.output.open("ab") as output:
            begin = output.tell()
            output.write(f"$ {shlex.join([*self.through, *command])}\n".encode())
            output.flush()
            process = subprocess.Popen(
                [*self.through, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                start_new_session=True,  # so that Ctrl-C reaches only the runner, which passes it on once
                pass_fds=(lock,),  # if the runner is killed, the run stays locked until this process ends
            )
        self._processes.add(process)
        if self._stopped.is_set():  # while the process was started
            self._signal(self.stop_signal)
        status = process.wait()
        self._processes.discard(process)
        if status == 0:
            return True
        was_stopped = self._stopped.is_set() or status == PREEMPTED_STATUS
        tracked.state = RunState.STOPPED if was_stopped else RunState.FAILED
        tracked.note = "" if was_stopped else _end_of(tracked.run.output, begin, status)
        return False

    def _stop(self, futures: Sequence[Future[None]]) -> None:
        """End every process: signal it first, and kill it if it does not end in time."""
        self._stopped.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        seconds = _SECONDS_TO_SAVE if self.stop_signal == signal.SIGUSR1 else _SECONDS_TO_STOP
        try:
            self._signal(self.stop_signal)
            wait([future for future in futures if not future.cancelled()], timeout=seconds)
        finally:  # also after a second Ctrl-C
            self._signal(signal.SIGKILL)
            self._pool.shutdown()

    def _signal(self, number: int) -> None:
        for process in list(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[int | None]:
    """Lock the log folder of a run; yields the lock's file descriptor, or None if another process holds the lock.

    Processes that inherit the descriptor keep the lock if this process is killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptors: list[int] = []
    try:
        lock = FileLock(folder / ".lock", blocking=False, on_acquired=descriptors.append).acquire()
    except Timeout:
        yield None
        return
    with lock:
        yield descriptors[0]


def _end_of(output: Path, begin: int, status: int) -> str:
    """Return the error or the last lines that a command printed."""
    with output.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
    printed = [line.rstrip() for line in lines[1:] if line.strip()]
    errors = [line for line in printed if line.startswith("error:")]
    shown = errors[-1:] or printed[-_LINES_SHOWN:]
    return "\n".join([*shown, f"(exit status {status}; the whole output is in {output})"])


def environments(num_workers: int) -> list[dict[str, str]]:
    """Return the environment variables of each worker: its number of threads, and its GPU if there are several."""
    if num_workers == 1:
        return [{}]
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, cores // num_workers))}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    num_gpus = torch.cuda.device_count()
    gpus = visible.split(",") if visible else [str(index) for index in range(num_gpus)]
    if num_gpus < 2:
        return [threads] * num_workers
    return [threads | {"CUDA_VISIBLE_DEVICES": gpus[index % num_gpus]} for index in range(num_workers)]
