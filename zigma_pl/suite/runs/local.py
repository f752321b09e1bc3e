"""Runs on this machine: each in processes of its own, several side by side, one's failure no other's business."""

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

_LINES_SHOWN = 6  # of the output of a failed run
_SECONDS_TO_STOP = 30.0
_SECONDS_TO_SAVE = 110.0  # of the 120 that configs/slurm/row.sbatch asks for
_SECONDS_BETWEEN_LOOKS = 0.5


class State(Enum):
    """Where a run is."""

    WAITING = "waiting"
    TRAINING = "training"
    SCORING = "scoring"
    DONE = "done"
    CHANGED = "changed"  # its record is of another configuration, and is kept
    ELSEWHERE = "elsewhere"  # another process has it
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def is_active(self) -> bool:
        """Whether a process is at work on it."""
        return self in (State.TRAINING, State.SCORING)


@dataclass
class Job:
    """A run and what has become of it.

    run: the run.
    state: where it is.
    note: of a failed run what was wrong; else what there is to say.
    """

    run: Run
    state: State = State.WAITING
    note: str = ""


def job_of(run: Run, again: bool) -> Job:
    """Return the job of a run, done already if its record says so.

    Args:
        run: the run.
        again: whether to do anew what was done in another configuration.
    """
    found = run.found()
    if found.is_done:
        return Job(run, State.DONE)
    if found.changed and not again:
        return Job(run, State.CHANGED, f"{found.note}: kept; --again runs the row anew")
    return Job(run, note=found.note)


class LocalRunner:
    """Runs jobs, at most `num_workers` at a time, until all have been tried.

    Args:
        jobs: what to run; their states change as they go on.
        num_workers: how many at a time.
        through: words put before each command, such as ("srun",).
        environments: of each worker, what it adds to the environment.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        num_workers: int = 1,
        through: Sequence[str] = (),
        environments: Sequence[dict[str, str]] = (),
    ) -> None:
        self.jobs = jobs
        self.through = list(through)
        self._pool = ThreadPoolExecutor(num_workers)
        self._environments: SimpleQueue[dict[str, str]] = SimpleQueue()
        for index in range(num_workers):
            self._environments.put(environments[index] if environments else {})
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._stopped = threading.Event()
        self.stop_signal = signal.SIGINT

    def run(self) -> Generator[None]:
        """Run all jobs; yields now and then, so that the caller can show how they do.

        When the caller is interrupted meanwhile, or stops looking, running jobs are stopped, and go on from their last
        checkpoint next time. With `stop_signal` SIGUSR1 training saves another one before it ends.
        """
        futures = [self._pool.submit(self._work, job) for job in self.jobs if job.state is State.WAITING]
        try:
            while not all(future.done() for future in futures):
                wait(futures, timeout=_SECONDS_BETWEEN_LOOKS)
                yield
        finally:
            self._stop(futures)
        for future in futures:
            future.result()  # an error of ours is no failure of a row

    def _work(self, job: Job) -> None:
        environment = self._environments.get()
        try:
            with sole_runner(job.run.log_folder) as lock:
                if lock is None:
                    job.state, job.note = State.ELSEWHERE, "another process runs it"
                elif job.run.found().is_done:  # since the plan was made, by another process
                    job.state = State.DONE
                else:
                    self._train_and_score(job, environment, lock)
        finally:
            self._environments.put(environment)

    def _train_and_score(self, job: Job, environment: dict[str, str], lock: int) -> None:
        if not job.run.is_trained():
            job.state = State.TRAINING
            if not self._call(job, job.run.fit_command(), environment, lock):
                return
        job.state = State.SCORING
        if not self._call(job, job.run.test_command(), environment, lock):
            return
        try:
            job.run.note_scored()
        except UserError as error:
            job.state, job.note = State.FAILED, str(error)
        else:
            job.state, job.note = State.DONE, ""

    def _call(self, job: Job, command: list[str], environment: dict[str, str], lock: int) -> bool:
        """Run one command to its end; returns whether it ended well."""
        job.run.progress.unlink(missing_ok=True)  # of the command before
        with job.run.output.open("ab") as output:
            begin = output.tell()
            output.write(f"$ {shlex.join([*self.through, *command])}\n".encode())
            output.flush()
            process = subprocess.Popen(
                [*self.through, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                start_new_session=True,  # Ctrl-C is for the runner, which passes it on once
                pass_fds=(lock,),  # should the runner be killed, the row stays locked while this goes on
            )
        self._processes.add(process)
        if self._stopped.is_set():  # meanwhile
            self._signal(self.stop_signal)
        status = process.wait()
        self._processes.discard(process)
        if status == 0:
            return True
        was_asked_to = self._stopped.is_set() or status == PREEMPTED_STATUS
        job.state = State.STOPPED if was_asked_to else State.FAILED
        job.note = "" if was_asked_to else _end_of(job.run.output, begin, status)
        return False

    def _stop(self, futures: Sequence[Future[None]]) -> None:
        """Have every process end, by asking first."""
        self._stopped.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        seconds = _SECONDS_TO_SAVE if self.stop_signal == signal.SIGUSR1 else _SECONDS_TO_STOP
        try:
            self._signal(self.stop_signal)
            wait([future for future in futures if not future.cancelled()], timeout=seconds)
        finally:  # also at a second Ctrl-C
            self._signal(signal.SIGKILL)
            self._pool.shutdown()

    def _signal(self, number: int) -> None:
        for process in list(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)


@contextlib.contextmanager
def sole_runner(folder: Path) -> Iterator[int | None]:
    """Lock the log folder of a run; gives the lock's file descriptor, or None if another process has the lock.

    Processes that inherit the descriptor keep the lock should this one be killed.
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
    """Return the last lines that a command printed."""
    with output.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
    told = [line.rstrip() for line in lines[1:] if line.strip()]
    errors = [line for line in told if line.startswith("error:")]
    shown = errors[-1:] or told[-_LINES_SHOWN:]
    return "\n".join([*shown, f"(exit status {status}; all of it is in {output})"])


def environments(num_workers: int) -> list[dict[str, str]]:
    """Return what each worker adds to the environment: its share of the cores, and one GPU where there are several."""
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
