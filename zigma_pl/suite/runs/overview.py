"""A line for each run, drawn anew in place on a terminal; elsewhere a line at each change of state."""

import shutil
import time
from collections import Counter
from collections.abc import Sequence
from typing import TextIO

from zigma_pl.suite.runs.local import Job, State
from zigma_pl.training.callbacks.progress_file import Progress, read_progress

_SECONDS_BETWEEN_LINES = 60.0  # of a run that goes on, where lines are not drawn in place
_HEADINGS = ("state", "step", "images/s", "time left")
_LINES_BESIDES = 3  # headings, sums, and where the terminal puts its cursor


class Overview:
    """Shows how jobs do.

    Args:
        jobs: what is shown.
        stream: where to.
    """

    def __init__(self, jobs: Sequence[Job], stream: TextIO) -> None:
        self.jobs = jobs
        self.stream = stream
        self._in_place = stream.isatty()
        self._width = max([len(job.run.name) for job in jobs] + [3])
        self._num_drawn = 0
        self._told: dict[int, tuple[State, float]] = {}

    def show(self) -> None:
        """Show the present state."""
        if self._in_place:
            self._draw()
        else:
            self._tell()
        self.stream.flush()

    def _draw(self) -> None:
        columns, rows = shutil.get_terminal_size()
        lines = [f"{'row':<{self._width}}  {_columns(*_HEADINGS)}"]
        shown = _most_telling(self.jobs, max(1, rows - _LINES_BESIDES))
        lines += [self._line(job) for job in shown]
        lines.append(_sums(self.jobs))
        up = f"\x1b[{self._num_drawn}A" if self._num_drawn else ""
        self.stream.write(up + "".join(f"\x1b[2K{line[: columns - 1]}\n" for line in lines) + "\x1b[J")
        self._num_drawn = len(lines)

    def _tell(self) -> None:
        now = time.monotonic()
        for index, job in enumerate(self.jobs):
            state, told = self._told.get(index, (State.WAITING, now))
            due = job.state.is_active and now - told >= _SECONDS_BETWEEN_LINES
            if job.state is not state or due:
                self.stream.write(self._line(job).rstrip() + "\n")
                self._told[index] = job.state, now

    def _line(self, job: Job) -> str:
        progress = read_progress(job.run.progress) if job.state.is_active else None
        return f"{job.run.name:<{self._width}}  {describe(job, progress)}"


def describe(job: Job, progress: Progress | None) -> str:
    """Return state, steps, speed and time left of a job as columns."""
    if progress is None:
        return _columns(job.state.value, "", "", "")
    total = "" if progress.total is None else f"/{progress.total:,}"
    speed = "" if progress.images_per_second is None else f"{progress.images_per_second:,.1f}"
    left = "" if progress.seconds_left is None else duration(progress.seconds_left)
    return _columns(progress.phase, f"{progress.done:,}{total}", speed, left)


def duration(seconds: float) -> str:
    """Return a number of seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _columns(state: str, steps: str, speed: str, left: str) -> str:
    return f"{state:<15} {steps:>15} {speed:>10} {left:>10}"


def _most_telling(jobs: Sequence[Job], number: int) -> list[Job]:
    """Return as many jobs as there is room for, in order, leaving out first what is done, then what waits."""
    importance = {State.DONE: 2, State.CHANGED: 2, State.ELSEWHERE: 2, State.WAITING: 1}
    chosen = sorted(range(len(jobs)), key=lambda index: (importance.get(jobs[index].state, 0), index))[:number]
    return [jobs[index] for index in sorted(chosen)]


def _sums(jobs: Sequence[Job]) -> str:
    counts = Counter(job.state for job in jobs)
    return ", ".join(f"{counts[state]} {state.value}" for state in State if counts[state])
