"""What ends a command: signals, and the end of the process that started this one."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
SECONDS_OF_ONE_SIGNAL = 2.0  # one signal may arrive twice: sent to a group of processes, and passed on by their parent

_SECONDS_BETWEEN_LOOKS = 0.5


class Repeats:
    """Tells a second signal from one that arrives twice."""

    def __init__(self) -> None:
        self.first: signal.Signals | None = None
        self._came = 0.0

    def is_second(self, number: int) -> bool:
        """Note a signal; returns whether another one, or the same one a while ago, came before it."""
        if self.first is None:
            self.first, self._came = signal.Signals(number), time.monotonic()
            return False
        return number != self.first or time.monotonic() - self._came > SECONDS_OF_ONE_SIGNAL


def listen(handler: Callable[[int, FrameType | None], None]) -> Callable[[], None]:
    """Call `handler` for each of `SIGNALS` in this process, but not in those forked from it.

    A signal that is ignored, as SIGHUP by nohup, stays so. Signals are left alone in other threads than the main one.

    Returns: a function that restores the handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    process = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            handler(number, frame)

    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heard}

    def restore() -> None:
        for number, found in before.items():
            signal.signal(number, found)

    return restore


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within the block, a signal raises KeyboardInterrupt, so that files are whole or not there.

    Raises:
        SystemExit: a signal came; with 128 + its number, when the block has ended.
    """
    signals = Repeats()

    def interrupt(number: int, frame: FrameType | None) -> None:
        is_first = signals.first is None
        if signals.is_second(number) or is_first:
            raise KeyboardInterrupt

    restore = listen(interrupt)
    try:
        yield
    finally:
        restore()
        if signals.first is not None:  # whatever became of the KeyboardInterrupt on its way
            sys.exit(128 + signals.first)


def end_with_parent() -> None:
    """End this process when the one that started it has ended, however that was."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()
