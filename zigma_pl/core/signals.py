"""Termination of a command by signals or by the exit of its parent process."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# One signal may arrive twice: sent to the process group, and forwarded by the parent.
SECONDS_OF_ONE_SIGNAL = 2.0

_POLL_SECONDS = 0.5


class Repeats:
    """Distinguishes a second signal from a duplicate of the first."""

    def __init__(self) -> None:
        self.first: signal.Signals | None = None
        self._received = 0.0

    def is_second(self, number: int) -> bool:
        """Record a signal and return whether it is a second one, not a duplicate of the first."""
        if self.first is None:
            self.first, self._received = signal.Signals(number), time.monotonic()
            return False
        return number != self.first or time.monotonic() - self._received > SECONDS_OF_ONE_SIGNAL


def listen(handler: Callable[[int, FrameType | None], None]) -> Callable[[], None]:
    """Install a handler for `SIGNALS` that runs in this process but not in processes forked from it.

    Signals that are ignored, such as SIGHUP under nohup, stay ignored. Outside the main thread nothing is installed.

    Returns: a function that restores the previous handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    process = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            handler(number, frame)

    handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in handled}

    def restore() -> None:
        for number, previous in before.items():
            signal.signal(number, previous)

    return restore


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt on a signal within the block, so that files being written are cleaned up.

    Raises:
        SystemExit: at the end of the block, with status 128 + signal number, if a signal was received.
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
        if signals.first is not None:  # even if the KeyboardInterrupt was caught
            sys.exit(128 + signals.first)


def end_with_parent() -> None:
    """Exit this process as soon as its parent process has ended for any reason."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()
