"""Launching several processes of one run: if one fails, all exit within seconds, and one of them reports the error."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import lightning as L
from torch.distributed import DistNetworkError

from zigma_pl.core.errors import UserError
from zigma_pl.training.callbacks.preemption import Preempted
from zigma_pl.training.lightning_private import ScriptLauncher

# Most errors occur in all processes at once, or in one process, whose exit then causes errors in the others.
SECONDS_TO_WAIT_FOR_THE_FIRST = 2.0  # delay before other processes raise an error; process 0 kills them before that
SECONDS_TO_FIND_THE_CAUSE = 5.0  # delay before process 0 raises an error that another process's exit may have caused

_POLL_SECONDS = 0.1


class Launcher(ScriptLauncher):
    """Starts the processes of a node; unlike Lightning's launcher, it also ends them when process 0 fails.

    If the processes were started externally (torchrun, SLURM), the external launcher has to end them; then errors of
    all processes except process 0 are only delayed.
    """

    def launch(self, function: Callable[..., Any], *args: Any, trainer: L.Trainer | None = None, **kwargs: Any) -> Any:
        """Start the other processes, and call the function.

        Raises:
            UserError: the processes cannot connect to each other.
            SystemExit: another process has failed and reported its error; has that process's exit status.
        """
        environment = self.cluster_environment
        environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        self.start_others()
        ended = threading.Event()
        threading.Thread(target=self._end_with_children, args=(ended,), daemon=True).start()
        try:
            return function(*args, **kwargs)
        except Preempted:  # all processes are preempted together
            raise
        except BaseException as error:
            if isinstance(error, Exception):
                self._leave_it_to_the_cause(error)
            self.kill(signal.SIGKILL)
            if isinstance(error, DistNetworkError):
                raise UserError(
                    f"the processes of this run cannot connect at {environment.main_address}:{environment.main_port} "
                    f"({str(error).split('. ', 1)[0]}): set the environment variable MASTER_PORT to a free port"
                ) from error
            raise
        finally:
            ended.set()

    def _leave_it_to_the_cause(self, error: Exception) -> None:
        if self.cluster_environment.global_rank() != 0:
            time.sleep(SECONDS_TO_WAIT_FOR_THE_FIRST)
        elif self.procs and isinstance(error, RuntimeError) and not isinstance(error, DistNetworkError):
            status = self._failure_within(SECONDS_TO_FIND_THE_CAUSE)
            if status:
                self.kill(signal.SIGKILL)
                sys.exit(status)

    def _failure_within(self, seconds: float) -> int:
        """Return the exit status of a process that fails within this time, 0 if none does."""
        until = time.monotonic() + seconds
        while not (status := self._failure()) and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
        return status

    def _failure(self) -> int:
        statuses = [process.poll() or 0 for process in self.procs]
        return next((status if status > 0 else 128 - status for status in statuses if status), 0)

    def _end_with_children(self, ended: threading.Event) -> None:
        """Exit this process if a child has failed, as it may be waiting for the child."""
        while not ended.wait(_POLL_SECONDS):
            status = self._failure()
            if status and not ended.wait(SECONDS_TO_WAIT_FOR_THE_FIRST):
                self.kill(signal.SIGKILL)
                sys.stderr.flush()
                os._exit(status)
