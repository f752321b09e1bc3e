"""Progress of all runs: a table that is updated in place on a terminal, else a line at each change of state."""

import shutil
import time
from collections import Counter
from collections.abc import Sequence
from typing import TextIO

from zigma_pl.suite.runs.local import RunState, TrackedRun
from zigma_pl.training.callbacks.progress_file import Progress, read_progress

_SECONDS_BETWEEN_LINES = 60.0  # for an active run, if the output is no terminal
_HEADINGS = ("state", "step", "images/s", "time left")
_OTHER_LINES = 3  # headings, totals and the line of the cursor


class Overview:
    """Shows the progress of runs.

    Args:
        tracked_runs: the runs.
        stream: where to write.
    """

    def __init__(self, tracked_runs: Sequence[TrackedRun], stream: TextIO) -> None:
        self.tracked_runs = tracked_runs
        self.stream = stream
        self._in_place = stream.isatty()
        self._width = max([len(tracked.run.name) for tracked in tracked_runs] + [3])
        self._num_drawn = 0
        self._printed: dict[int, tuple[RunState, float]] = {}

    def show(self) -> None:
        """Show the current states."""
        if self._in_place:
            self._redraw()
        else:
            self._print_changes()
        self.stream.flush()

    def _redraw(self) -> None:
        columns, rows = shutil.get_terminal_size()
        lines = [f"{'run':<{self._width}}  {_columns(*_HEADINGS)}"]
        shown = _most_important(self.tracked_runs, max(1, rows - _OTHER_LINES))
        lines += [self._line(tracked) for tracked in shown]
        lines.append(_totals(self.tracked_runs))
        up = f"\x1b[{self._num_drawn}A" if self._num_drawn else ""
        self.stream.write(up + "".join(f"\x1b[2K{line[: columns - 1]}\n" for line in lines) + "\x1b[J")
        self._num_drawn = len(lines)

    def _print_changes(self) -> None:
        now = time.monotonic()
        for index, tracked in enumerate(self.tracked_runs):
            state, printed = self._printed.get(index, (RunState.WAITING, now))
            due = tracked.state.is_active and now - printed >= _SECONDS_BETWEEN_LINES
            if tracked.state is not state or due:
                self.stream.write(self._line(tracked).rstrip() + "\n")
                self._printed[index] = tracked.state, now

    def _line(self, tracked: TrackedRun) -> str:
        progress = read_progress(tracked.run.progress) if tracked.state.is_active else None
        return f"{tracked.run.name:<{self._width}}  {describe(tracked, progress)}"


def describe(tracked: TrackedRun, progress: Progress | None) -> str:
    """Return state, steps, speed and time left of a run as columns."""
    if progress is None:
        return _columns(tracked.state.value, "", "", "")
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


def _most_important(tracked_runs: Sequence[TrackedRun], number: int) -> list[TrackedRun]:
    """Return `number` runs in order, leaving out finished runs first and waiting runs next."""
    importance = {RunState.DONE: 2, RunState.CHANGED: 2, RunState.ELSEWHERE: 2, RunState.WAITING: 1}
    by_importance = sorted(enumerate(tracked_runs), key=lambda entry: importance.get(entry[1].state, 0))  # stable
    return [tracked for _, tracked in sorted(by_importance[:number], key=lambda entry: entry[0])]


def _totals(tracked_runs: Sequence[TrackedRun]) -> str:
    counts = Counter(tracked.state for tracked in tracked_runs)
    return ", ".join(f"{counts[state]} {state.value}" for state in RunState if counts[state])
